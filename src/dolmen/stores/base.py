"""What stores inherit: `OneByOne` the bulk operations, `Delegating` everything else's.

`OneByOne` is for an engine that has nothing better than one operation at a time: it gives
`get_many`, `verify_many`, `write_many` and `remove_many` with some operations under way at
once and the answers in order. `Delegating` is for a store in front of another one (a cache,
a retrying store, a faulty one): it passes every method on, and what inherits it changes
some. Read first: `dolmen.store`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import ClassVar, Self, TypeVar, cast

from blake3 import blake3

from dolmen.closing import closing
from dolmen.digests import Digests
from dolmen.errors import Corrupt, DolmenError, NotFound
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX, id_hasher, is_chunk_name, is_object_id
from dolmen.payload import EMPTY
from dolmen.record import Kind
from dolmen.store import (
    EVERYTHING,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    BlobStore,
    Capabilities,
    Condition,
    Failed,
    Listing,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.epoch import check_epoch

WINDOW = 64
"""Operations under way at once."""
_INLINE = 65_536
"""Up to this size hashing takes less time than handing it to a thread."""
T = TypeVar("T")


class OneByOne:
    """The bulk operations by way of `get`, `write` and `remove`.

    `reads_ahead` says how many gets are under way: 1 where an answer is there at once, or
    holds something until it is read; what is read whole may take room for so many.
    """

    reads_ahead: ClassVar[int] = 1

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """Drop one copy as `BlobStore.remove_many` does; returns whether it went."""
        raise NotImplementedError

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        gets = (get_any(cast("BlobStore", self), name) for name in names)
        async with closing(_in_order(gets, self.reads_ahead)) as answers:
            async for answer in answers:
                yield answer

    async def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        async with closing(cast("BlobStore", self).get_many(names)) as answers:
            async for answer in answers:
                yield answer if isinstance(answer, Failed) else await verify(answer)

    async def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        """At most `WINDOW` writes are under way."""
        store = cast("BlobStore", self)
        async with UnderWay[Put | Failed]() as under_way:
            async for write in writes:
                under_way.add(write_any(store, write))
                # A payload that is streamed must be read before the next one is asked for.
                least = 0 if write.payload.whole is None else WINDOW - 1
                while len(under_way) > least:
                    yield await under_way.next()
            while under_way:
                yield await under_way.next()

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """At most `WINDOW` removals are under way."""
        if epoch is not None:
            await check_epoch(cast("BlobStore", self), epoch)
        removals = (self.remove(remove, min_age=min_age) for remove in removes)
        async with closing(_in_order(removals, WINDOW)) as removed:
            return [each async for each in removed]


class Delegating:
    """A store that passes every operation on to `store`."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store behind it."""
        return self.store.capabilities

    def write(self, write: Write) -> Awaitable[Put]:
        return self.store.write(write)

    def get(self, name: str, *, byte_range: Range | None = None) -> Awaitable[Blob]:
        return self.store.get(name, byte_range=byte_range)

    def stat(self, name: str) -> Awaitable[BlobInfo]:
        return self.store.stat(name)

    def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        return self.store.list(listing)

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        return self.store.get_many(names)

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        return self.store.verify_many(names)

    def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        return self.store.write_many(writes)

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        return await self._ask(
            lambda: self.store.remove_many(removes, min_age=min_age, epoch=epoch)
        )

    async def digests(self) -> Digests:
        return await self._ask(self.store.digests)

    async def note(self, key: str, value: bytes) -> None:
        await self._ask(lambda: self.store.note(key, value))

    async def notes(self) -> dict[str, bytes]:
        return await self._ask(self.store.notes)

    async def condition(self) -> Condition:
        return await self._ask(self.store.condition)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """What all that is about the store itself goes through."""
        return await question()

    async def aclose(self) -> None:
        await self.store.aclose()


class UnderWay(deque["asyncio.Future[T]"]):
    """Operations whose results are taken in order; those left at the end are cancelled."""

    def add(self, operation: Awaitable[T]) -> None:
        """Begin one more."""
        self.append(asyncio.ensure_future(operation))

    async def next(self) -> T:
        """The result of the one begun first."""
        task = self.popleft()
        try:
            return await task
        except asyncio.CancelledError:
            self.appendleft(task)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self:
            task.cancel()
        await asyncio.gather(*self, return_exceptions=True)


async def in_batches(
    items: AsyncIterator[T],
    most: int,
    size: Callable[[T], int] = lambda _: 0,
    *,
    room: int = 64 << 20,
) -> AsyncIterator[list[T]]:
    """Lists of at most so many items, bounded in bytes of data too.

    What takes all the `room`, or more, comes alone.
    """
    batch: list[T] = []
    left = room
    async for item in items:
        taken = size(item)
        if taken >= room and batch:
            yield batch
            batch, left = [], room
        batch.append(item)
        left -= taken
        if left <= 0 or len(batch) >= most:
            yield batch
            batch, left = [], room
    if batch:
        yield batch


async def write_in_batches(
    writes: AsyncIterator[Write],
    write: Callable[[list[Write]], Awaitable[Sequence[Put | Failed]]],
    size: Callable[[Write], int],
    *,
    most: int,
    room: int,
    at_once: int,
) -> AsyncIterator[Put | Failed]:
    """`write_many` by batches (see `in_batches`), of which so many are under way.

    What is streamed has to have a size that makes it come alone: its payload must be read before
    the next write is asked for.
    """
    batches = in_batches(writes, most, size, room=room)
    async with UnderWay[Sequence[Put | Failed]]() as under_way, closing(batches):
        async for batch in batches:
            under_way.add(write(batch))
            least = 0 if batch[0].payload.whole is None else at_once - 1
            while len(under_way) > least:
                for answer in await under_way.next():
                    yield answer
        while under_way:
            for answer in await under_way.next():
                yield answer


async def _in_order(operations: Iterable[Awaitable[T]], at_once: int) -> AsyncIterator[T]:
    """The results of operations of which so many are under way."""
    async with UnderWay[T]() as under_way:
        for operation in operations:
            under_way.add(operation)
            if len(under_way) == at_once:
                yield await under_way.next()
        while under_way:
            yield await under_way.next()


async def get_any(store: BlobStore, name: str) -> Blob | Failed:
    """Read what is current under a name, a tombstone too."""
    try:
        return await store.get(name)
    except DolmenError as error:
        return answer_of(name, error)


def answer_of(name: str, error: DolmenError) -> Blob | Failed:
    """What `get_many` answers where `get` raises: the tombstone behind `NotFound`, or a failure."""
    if isinstance(error, NotFound) and error.stamp:
        return Blob(BlobInfo(name, 0, Kind.TOMBSTONE, error.stamp, NO_CHECKSUM), EMPTY)
    return Failed(name, error)


async def write_any(store: BlobStore, write: Write) -> Put | Failed:
    """Carry out one write of many."""
    try:
        return await store.write(write)
    except DolmenError as error:
        return Failed(write.name, error)


async def verify(blob: Blob) -> BlobInfo | Failed:
    """What is known of a blob whose bytes have the checksum and the digest they should.

    A store without stamps knows no checksums; there the name alone is held against them.
    """
    info = blob.info
    if info.kind == Kind.TOMBSTONE:
        return info
    checksum = blake3()
    is_object = info.kind == Kind.BLOB and is_object_id(info.name)
    digest = id_hasher(info.name) if is_object else None
    in_thread = asyncio.get_running_loop().run_in_executor
    size = 0
    try:
        async with closing(aiter(blob.payload)) as pieces:
            async for piece in pieces:
                size += len(piece)
                for hasher in (checksum, digest):
                    if hasher is None:
                        continue
                    if len(piece) <= _INLINE:
                        hasher.update(piece)
                    else:
                        await in_thread(None, hasher.update, piece)
    except DolmenError as error:
        return Failed(info.name, error)
    named = info.name
    if digest is not None:
        named = digest.hexdigest()
    elif is_chunk_name(named):
        named = CHUNK_PREFIX + checksum.hexdigest()
    if named != info.name:
        return Failed(info.name, Corrupt(f"the content under {info.name} has another digest"))
    right = checksum.digest(CHECKSUM_SIZE) == info.checksum and size == info.size
    if not right and info.checksum != NO_CHECKSUM:
        return Failed(info.name, Corrupt(f"the content of {info.name} has another checksum"))
    return info
