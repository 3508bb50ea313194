"""Bulk operations for stores that have nothing better than one at a time.

A store inherits `OneByOne` and gets `get_many` and `put_many` with some operations
under way at once and the answers in order, and with them what `Upkeep` has for every store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import ClassVar, Self, TypeVar, cast

from dolmen import metadata
from dolmen.closing import closing
from dolmen.errors import BadContent, DolmenError, NotFound
from dolmen.names import check_name
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Put, Remove
from dolmen.stores.epoch import check_epoch
from dolmen.stores.soundness import verify

WINDOW = 64
T = TypeVar("T")


class Upkeep:
    """`verify_many` by way of `get_many`, `remove_many` by way of `remove`.

    What inherits it and knows of damaged copies has a `quarantined` of its own.
    """

    async def quarantined(self) -> AsyncIterator[str]:
        """See `BlobStore.quarantined`."""
        names: Sequence[str] = ()
        for name in names:
            yield name

    async def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """See `BlobStore.verify_many`."""
        async with closing(cast("BlobStore", self).get_many(names)) as answers:
            async for answer in answers:
                yield answer if isinstance(answer, Failed) else await verify(answer)

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """See `BlobStore.remove_many`. At most `WINDOW` removals are under way."""
        store = cast("BlobStore", self)
        if epoch is not None:
            await check_epoch(store, epoch)
        removed: list[bool] = []
        async with UnderWay[bool]() as under_way:
            for name, stamp in removes:
                if len(under_way) == WINDOW:
                    removed.append(await under_way.next())
                under_way.add(store.remove(name, if_stamp=stamp, min_age=min_age))
            while under_way:
                removed.append(await under_way.next())
        return removed


class OneByOne(Upkeep):
    """`get_many` and `put_many` by way of `get`, `stat`, `put` and `delete`.

    `reads_ahead` says how many gets are under way: 1 where an answer is there at once, or
    holds something until it is read; what is read whole may take room for so many.
    """

    reads_ahead: ClassVar[int] = 1

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        store = cast("BlobStore", self)
        if self.reads_ahead == 1:
            for name in names:
                yield await get_any(store, name)
            return
        async with UnderWay[Blob | Failed]() as under_way:
            for name in names:
                if len(under_way) == self.reads_ahead:
                    yield await under_way.next()
                under_way.add(get_any(store, name))
            while under_way:
                yield await under_way.next()

    async def put_many(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.put_many`. At most `WINDOW` puts are under way."""
        store = cast("BlobStore", self)
        async with UnderWay[Put | Failed]() as under_way:
            async for blob in blobs:
                under_way.add(put_any(store, blob))
                # A payload that is streamed must be read before the next one is asked for.
                least = 0 if blob.payload.whole is None else WINDOW - 1
                while len(under_way) > least:
                    yield await under_way.next()
            while under_way:
                yield await under_way.next()


class UnderWay(deque["asyncio.Task[T]"]):
    """Tasks whose results are taken in order; those left at the end are cancelled."""

    def add(self, coroutine: Coroutine[object, object, T]) -> None:
        """Begin one more."""
        self.append(asyncio.get_running_loop().create_task(coroutine))

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


async def get_any(store: BlobStore, name: str) -> Blob | Failed:
    """Read what stands under a name, a tombstone too."""
    try:
        return await store.get(name)
    except NotFound as absent:
        if not absent.stamp:
            return Failed(name, absent)
    except DolmenError as error:
        return Failed(name, error)
    try:
        info = await store.stat(name, tombstones=True)
    except DolmenError as error:
        return Failed(name, error)
    if info.kind != Kind.TOMBSTONE:  # it was written again in between
        return await get_any(store, name)
    return Blob(info, Bytes(b""))


def check_travels(blob: Blob) -> None:
    """Raise what `put_many` refuses a blob for before anything is asked of the store."""
    info = blob.info
    check_name(info.name)
    metadata.check(info.metadata)
    if info.kind == Kind.TOMBSTONE and (info.metadata or info.size or blob.payload.size):
        raise BadContent(f"a tombstone has neither data nor metadata; that of {info.name} has")


async def put_any(store: BlobStore, blob: Blob) -> Put | Failed:
    """Write a blob, or the tombstone it is, with the stamp it has."""
    info = blob.info
    try:
        check_travels(blob)
        if info.kind == Kind.TOMBSTONE:
            return await store.delete(info.name, stamp=info.stamp)
        return await store.put(
            info.name,
            blob.payload,
            meta=info.metadata,
            stamp=info.stamp,
            kind=Kind(info.kind),
            checksum=info.checksum if any(info.checksum) else None,  # a plain server knows none
        )
    except DolmenError as error:
        return Failed(info.name, error)
