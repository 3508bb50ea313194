"""`s3://`, `gs://`, `az://`: blobs in a bucket of an object store.

For data that outgrew one's machines. Any number of dolmen processes on any machines may use one
bucket; it needs no compare-and-swap, and no clock but the bucket's decides an age.

Layout, below the path of the URL:

    heads/…        one write of one name each: `dolmen.stores.bucket_head`
    data/…         the parts of data above 64 KiB: `dolmen.stores.bucket_data`
    notes/HASH     facts about the store; `identity`, `swept` and `clock` beside them

**The highest head is current** (`store.Rank`), and nothing else decides. No key gets two
contents, and a head's data belongs to it alone. From that follows:

* *Half a blob is never seen.* The head is put after the data, in one piece.
* *Writers converge.* Each adds a head of its own, so none can undo another's, and every reader
  takes the highest of the same set. Two plain puts of differing content at once may both succeed;
  the newer is current (`conflicts` is False).
* *A delete* adds a head that is a tombstone. *A touch* reads the data, checks it, and stores it
  again: as a head shares its data with no other, it can go without asking who else uses it.
* *Nothing comes back.* Whoever takes heads away takes the lower ones first, so no moment shows a
  head that a higher one overruled.
* *What is being read stays.* The sweep takes outranked heads and their data a day (`GRACE`) after
  a higher one came. `remove` takes heads at once; their data stays for the sweep.
* *What is being written stays.* The sweep takes data without a head when its newest part is a day
  old. A write is only acknowledged when its head was there half a day after its last
  part at the latest, by the elapsed time of its machine. The sweep asks for the bucket's time
  before it lists, so it has seen the head of every such write.

Ages are those of the bucket's own last-modified times, against the bucket's own clock. Machines'
clocks give stamps and nothing else.

**Damage.** Parts carry CRC-32C sums, small data and metadata are compared with checksum and
hash. What fails is marked by an empty object beside its head: it answers as `Corrupt`, and leaves
lists and digests, until a put replaces it.

Read first: `dolmen.store`, `dolmen.stores.bucket_head`, `dolmen.stores.bucket_data`.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import secrets
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar

from dolmen import metadata
from dolmen.closing import closing
from dolmen.digests import Digests, Slot, hash_of_entry
from dolmen.errors import (
    BadSetting,
    Corrupt,
    DolmenError,
    Full,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, Stream
from dolmen.record import Kind
from dolmen.resolve import Action, check, check_content, check_key, may_remove, resolve
from dolmen.stamps import Clock
from dolmen.store import (
    EVERYTHING,
    IDENTITY,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Listing,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne
from dolmen.stores.bucket_client import Client, Refused, open_client, seconds
from dolmen.stores.bucket_data import Upload, read
from dolmen.stores.bucket_head import INLINE, Head, by_name, folder_of, head_of, heads_of
from dolmen.stores.bucket_sweep import Sweeper

LARGEST = 1 << 40
WHOLE = 1 << 20
"""What is read of a blob is read before it is answered, up to this size; more is streamed."""
_ROUNDS = 5
"""How often to look again where what was seen is gone before it was read."""
_AT_ONCE = 64

# The driver's threads release what they were given a moment after they answered. One that
# does so while the interpreter ends takes the process down (PyO3/pyo3-async-runtimes, issue 40).
atexit.register(time.sleep, 0.05)


class BucketStore(OneByOne):
    """A blob store in a bucket. `clock` gives stamps, `elapsed` is `bucket_client.seconds`."""

    capabilities = Capabilities(
        durable=True, largest=LARGEST, digests=False, ordered=True, conflicts=False
    )
    reads_ahead: ClassVar[int] = 32

    def __init__(
        self,
        client: Client,
        *,
        clock: Clock | None = None,
        elapsed: Callable[[], float] = seconds,
    ) -> None:
        self._client, self._clock, self._elapsed = client, clock or Clock(), elapsed
        self._closed, self._writing = False, 0
        self._written = asyncio.Event()
        self.sweeper = Sweeper(client)

    # Writing

    @contextmanager
    def _write_under_way(self) -> Iterator[None]:
        """`aclose` waits for what is done inside."""
        if self._closed:
            raise Unavailable("the store is closed")
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            self._written.set()

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`. An identical put stores its data again."""
        check(write)
        if write.payload.size > LARGEST:
            raise TooLarge(f"{write.payload.size} bytes are more than this store keeps ({LARGEST})")
        with self._write_under_way():
            return await (self._touch(write) if write.kind == Kind.TOUCH else self._put(write))

    async def _put(self, write: Write) -> Put:
        upload = Upload(self._client, write.name, self._elapsed)
        try:
            checksum = NO_CHECKSUM
            if write.kind != Kind.TOMBSTONE:
                checksum = await upload.take(write.payload)
                check_content(write, checksum)
            heads, current = await self._current(write.name)
            damaged = bool(heads) and heads[-1].damaged
            action, put = resolve(
                write, current, checksum=checksum, damaged=damaged, clock=self._clock
            )
            upload.check_age()
        except DolmenError:
            await upload.drop()
            raise
        if action is Action.KEEP:
            await upload.drop()
            return put
        head = await self._add(upload, write, write.kind, put.stamp, checksum)
        if damaged:
            outranking = [one for one in heads if one.rank >= head.rank]
            try:
                await self._take_away(outranking)
            except Unavailable as error:
                raise OutcomeUnknown(f"the damaged {write.name} may still be there: {error}") from (
                    error
                )
        return put

    async def _touch(self, write: Write) -> Put:
        checksum = write.checksum or NO_CHECKSUM
        for _ in range(_ROUNDS):
            heads, current = await self._current(write.name)
            damaged = bool(heads) and heads[-1].damaged
            action, put = resolve(
                write, current, checksum=checksum, damaged=damaged, clock=self._clock
            )
            if action is Action.KEEP:
                return put
            head = heads[-1]
            upload = Upload(self._client, write.name, self._elapsed)
            try:
                if (stored := await self._stored(head)) is None:
                    continue
                found = await upload.take(await self._payload(head, stored[1], 0, head.size))
                if found != checksum:
                    raise await self._damaged(head)
                upload.check_age()
            except Corrupt as error:
                await upload.drop()
                raise NotFound(f"the content of {write.name} is damaged here") from error
            except DolmenError:
                await upload.drop()
                raise
            await self._add(upload, write, head.kind, put.stamp, checksum)
            return put
        raise _restless(write.name)

    async def _add(
        self, upload: Upload, write: Write, kind: int, stamp: int, checksum: bytes
    ) -> Head:
        """Make a write current. Who cancels it waits until it is known whether it is."""
        info = BlobInfo(write.name, upload.size, kind, stamp, checksum, write.metadata)
        head = head_of(info, upload.id)
        body = upload.data if head.metadata is not None else write.metadata + bytes(upload.data)
        putting = asyncio.ensure_future(self._client.put(head.path, body))
        try:
            await asyncio.shield(putting)
            upload.check_age()
        except asyncio.CancelledError:
            await asyncio.gather(putting, return_exceptions=True)
            raise
        except Unavailable as error:
            if putting.exception() is None:
                raise OutcomeUnknown(f"the write came too late to be sure of: {error}") from error
            await upload.drop()
            raise
        return head

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`."""
        check_name(remove.name)
        with self._write_under_way():
            now = await self._client.now() if min_age > 0 else math.inf
            heads = await self._look(remove.name)
            current = heads[-1].info() if heads else None
            if not may_remove(current, if_stamp=remove.if_stamp, min_age=min_age, now=now):
                return False
            await self._take_away(heads)
            return True

    async def _take_away(self, heads: Sequence[Head]) -> None:
        """Delete heads of one name, the highest after the others, and their marks."""
        await self._client.delete([head.path for head in heads[:-1]])
        await self._client.delete([head.path for head in heads[-1:]])
        await self._client.delete([head.mark for head in heads if head.damaged])

    # Reading

    async def _look(self, name: str) -> list[Head]:
        """The heads of a name, the current one last."""
        return heads_of(await self._client.all(f"heads/{folder_of(name)}"))

    async def _current(self, name: str) -> tuple[list[Head], BlobInfo | None]:
        """The heads of a name, and what the current one says."""
        for _ in range(_ROUNDS):
            heads = await self._look(name)
            if not heads:
                return heads, None
            with suppress(Corrupt):  # it is marked now: look again
                if (info := await self._info(heads[-1])) is not None:
                    return heads, info
        raise _restless(name)

    async def _info(self, head: Head) -> BlobInfo | None:
        """What a head says; None where it is gone. Raises `Corrupt`."""
        if head.metadata is not None or head.damaged:
            return head.info()
        stored = await self._stored(head)
        return None if stored is None else head.info(stored[0])

    async def _stored(self, head: Head) -> tuple[bytes, memoryview] | None:
        """The metadata of a head and the data in its object, checked; None where it is gone."""
        inside = head.size if head.size <= INLINE else 0
        if head.metadata is not None and not inside:
            return head.metadata, memoryview(b"")
        body = await self._client.get(head.path)
        if body is None:
            return None
        split = max(len(body) - inside, 0)
        before, data = bytes(body[:split]), body[split:]
        whole = len(data) == inside and (head.metadata is None or not before)
        meta = before if head.metadata is None else head.metadata
        if (
            not whole
            or metadata.hash_of(meta) != head.metadata_hash
            or (inside and checksum_of(data) != head.checksum)
        ):
            raise await self._damaged(head)
        return meta, data

    async def _damaged(self, head: Head) -> DolmenError:
        """What to raise for a head whose bytes are not what was stored; marks it."""
        if head.id not in [one.id for one in await self._look(head.name)]:
            return Unavailable(f"{head.name} was replaced while it was read: read it again")
        try:
            await self._client.put(head.mark, b"")
        except DolmenError as error:
            return Corrupt(f"{head.name} is damaged in {self._client.url}; marking it: {error}")
        return Corrupt(f"{head.name} is damaged in {self._client.url}")

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        check_name(name)
        for _ in range(_ROUNDS):
            head = _live(name, await self._look(name))
            if (stored := await self._stored(head)) is not None:
                meta, data = stored
                start, stop = byte_range or (0, head.size)
                payload = await self._payload(head, data, start, min(stop, head.size))
                return Blob(head.info(meta), payload)
        raise _restless(name)

    async def _payload(self, head: Head, data: memoryview, start: int, stop: int) -> Payload:
        if head.size <= INLINE:
            return Bytes(data[start:stop])
        size = max(stop - start, 0)
        if size > WHOLE:
            return Stream(size, lambda: self._pieces(head, start, stop))
        pieces = [piece async for piece in self._pieces(head, start, stop)]
        return Bytes(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def _pieces(self, head: Head, start: int, stop: int) -> AsyncIterator[memoryview]:
        try:
            async for piece in read(self._client, head, start, stop):
                yield piece
        except Corrupt as error:
            raise await self._damaged(head) from error

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        heads, current = await self._current(check_name(name))
        _live(name, heads)
        assert current is not None
        return current

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        wanted, after = listing.partitions, listing.after
        if after is not None:
            wanted = wanted[bisect_left(wanted, partition_of(after)) :]
            after = f"heads/{folder_of(after)}0"  # "0" comes right behind "/"
        window: list[Head] = []
        async with closing(by_name(self._client, "heads", wanted, after)) as names:
            async for objects in names:
                heads = heads_of(objects)
                if not heads or not heads[-1].name.startswith(listing.prefix):
                    continue
                head = heads[-1]
                if head.damaged == listing.quarantined and (
                    listing.tombstones or head.kind != Kind.TOMBSTONE
                ):
                    window.append(head)
                if len(window) == _AT_ONCE:
                    for info in await self._infos(window):
                        yield info
                    window.clear()
        for info in await self._infos(window):
            yield info

    async def _infos(self, heads: Sequence[Head]) -> Sequence[BlobInfo]:
        """What heads found in a listing say, without those that are gone or damaged by now."""

        async def info_of(head: Head) -> BlobInfo | None:
            try:
                return await self._info(head) or (await self._current(head.name))[1]
            except Corrupt:
                return None

        found = await asyncio.gather(*map(info_of, heads))
        return [info for info in found if info is not None]

    async def digests(self) -> Digests:
        """See `BlobStore.digests`. Worked out from a listing."""
        slots: dict[int, Slot] = {}
        async for objects in by_name(self._client, "heads"):
            heads = heads_of(objects)
            if heads and not heads[-1].damaged:
                head = heads[-1]
                slot = slots.setdefault(partition_of(head.name), Slot())
                slot.add(head.size, hash_of_entry(head.name.encode(), *head.rank))
        return Digests(slots)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        encoded = check_key(key).encode()
        with self._write_under_way():
            path = f"notes/{checksum_of(encoded).hex()}"
            await self._client.replace(path, len(encoded).to_bytes(2, "little") + encoded + value)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`. The first call for a new store creates its identity."""
        notes = {}
        for found in await self._client.all("notes"):
            if (body := await self._client.get(found.path)) is not None:
                stop = 2 + int.from_bytes(body[:2], "little")
                notes[str(body[2:stop], "utf-8")] = bytes(body[stop:])
        identity = await self._client.get(IDENTITY)
        if identity is None:
            await self._client.create(IDENTITY, secrets.token_hex(16).encode())
            identity = await self._client.get(IDENTITY)
        if identity is None:
            raise Unavailable(f"{self._client.url} does not show at once what was written")
        return notes | {IDENTITY: bytes(identity)}

    async def condition(self) -> Condition:
        """See `BlobStore.condition`. Writes a small object, to see whether that works."""
        await self._client.all("notes")
        condition = Condition(reasons=[self.sweeper.trouble] if self.sweeper.trouble else [])
        try:
            await self._client.now(fresh=True)
        except (Full, Refused) as error:
            condition.writable = False
            condition.reasons.append(str(error))
        return condition

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        self._closed = True
        await self.sweeper.aclose()
        while self._writing:
            self._written.clear()
            await self._written.wait()
        self._client.close()


def _live(name: str, heads: Sequence[Head]) -> Head:
    """The head that is current; raises `NotFound` or `Corrupt`."""
    if not heads:
        raise NotFound(f"{name} is not here")
    head = heads[-1]
    if head.damaged:
        raise Corrupt(f"{name} is damaged here")
    if head.kind == Kind.TOMBSTONE:
        raise NotFound(f"{name} was deleted", stamp=head.stamp)
    return head


def _restless(name: str) -> Unavailable:
    return Unavailable(f"{name} is being written by others all the time: try again")


async def open_url(url: str) -> BucketStore:
    """The store in the bucket that a URL names.

    One that can't be reached now may come up later; one that is not there, or not for the
    credentials given, raises `BadSetting`.
    """
    client = open_client(url)
    try:
        await client.all("notes")
    except Refused as error:
        raise BadSetting(str(error)) from error
    except Unavailable:
        pass  # every request will say so until it comes up
    store = BucketStore(client)
    store.sweeper.start()
    return store
