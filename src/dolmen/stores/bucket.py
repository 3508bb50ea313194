"""`s3://`, `gs://`, `az://`: blobs in a bucket of an object store.

For data that outgrew one's machines. Any number of dolmen processes on any machines may use one
bucket; it needs no compare-and-swap, and no clock but the bucket's decides an age.

Layout, below the path of the URL:

    blobs/…        for each write of a name a *head* with data of up to 4 MiB, and the parts of
                   more, 4 MiB each: `dolmen.stores.bucket_layout`, `dolmen.stores.parts`
    notes/HASH     facts about the store; `identity`, `swept` and `clock` beside them

Parts are objects of their own and not one multipart upload: an abandoned one of these can't be
listed, and is paid for until a rule of the bucket ends it.

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

Read first: `dolmen.store`, `dolmen.stores.bucket_layout`, `dolmen.stores.parts`. What tidies up is
in `dolmen.stores.bucket_uploads`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
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
from dolmen.payload import Bytes, Stream, read_whole
from dolmen.record import Kind
from dolmen.repeating import Repeating
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
from dolmen.stores import bucket_uploads
from dolmen.stores.base import WINDOW, OneByOne, UnderWay
from dolmen.stores.bucket_client import Client, Found, open_client, seconds
from dolmen.stores.bucket_layout import (
    Head,
    by_name,
    folder_of,
    head_path,
    heads_of,
    is_part,
    part_path,
)
from dolmen.stores.bucket_uploads import PARTS, Upload
from dolmen.stores.driver import Refused

LARGEST = 1 << 40
WHOLE = 1 << 20
"""What is read of a blob is read before it is answered, up to this size; more is streamed."""


class BucketStore(OneByOne):
    """A blob store in a bucket. `clock` gives stamps, `elapsed` is `bucket_client.seconds`."""

    capabilities = Capabilities(
        durable=True, largest=LARGEST, digests=False, ordered=True, conflicts=False
    )
    reads_ahead: ClassVar[int] = 32

    def __init__(
        self, client: Client, *, clock: Clock | None = None, elapsed: Callable[[], float] = seconds
    ) -> None:
        self._client = client
        self._clock, self._elapsed = clock or Clock(), elapsed
        self.sweeping: Repeating | None = None

    # Writing

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`. An identical put stores its data again, and so does a touch."""
        check(write)
        if write.payload.size > LARGEST:
            raise TooLarge(f"{write.payload.size} bytes are more than this store keeps ({LARGEST})")
        upload = Upload(self._client, write, self._elapsed)
        try:
            return await self._write(write, upload)
        except OutcomeUnknown:  # there may be a head that refers to its parts
            raise
        except DolmenError:
            await upload.drop()
            raise

    async def _write(self, write: Write, upload: Upload) -> Put:
        checksum = write.checksum or NO_CHECKSUM
        if write.kind in (Kind.BLOB, Kind.MANIFEST):
            checksum = await upload.take(write.payload)
            check_content(write, checksum)
        heads = await self._look(write.name)
        current = heads[-1] if heads else None
        damaged = current is not None and current.damaged
        action, put = resolve(write, current, checksum=checksum, damaged=damaged, clock=self._clock)
        if action is Action.KEEP:
            await upload.drop()
            return put
        kind = write.kind
        if kind == Kind.TOUCH and current is not None:
            kind = current.kind
            try:
                size = current.size
                found = await upload.take(Stream(size, partial(self._pieces, current, 0, size)))
                if found != checksum:
                    raise await self._damaged(current)
            except Corrupt as error:
                raise NotFound(f"the content of {write.name} is damaged here") from error
        info = BlobInfo(write.name, upload.size, kind, put.stamp, checksum, write.metadata)
        await self._add(upload, info)
        if damaged:
            try:
                await self._take_away([one for one in heads if one.rank >= info.rank])
            except DolmenError as error:
                why = f"the damaged {write.name} may still be there: {error}"
                raise OutcomeUnknown(why) from error
        return put

    async def _add(self, upload: Upload, info: BlobInfo) -> None:
        """Make a write current. Who cancels it waits until it is known whether it is."""
        upload.check_age()
        path, apart = head_path(info, upload.id)
        body = apart + bytes(upload.data) if apart else upload.data
        putting = asyncio.ensure_future(self._client.put(path, body))
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            await asyncio.gather(putting, return_exceptions=True)
            raise
        try:
            upload.check_age()
        except Unavailable as error:
            raise OutcomeUnknown(f"the write came too late to be sure of: {error}") from error

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`."""
        check_name(remove.name)
        now = await self._client.now() if min_age > 0 else math.inf
        heads = await self._look(remove.name)
        current = heads[-1] if heads else None
        removed = may_remove(current, if_stamp=remove.if_stamp, min_age=min_age, now=now)
        if removed:
            await self._take_away(heads)
        return removed

    async def _take_away(self, heads: Sequence[Head]) -> None:
        """Delete heads of one name, the highest after the others, and their marks."""
        await self._client.delete([head.path for head in heads[:-1]])
        await self._client.delete([head.path for head in heads[-1:]])
        await self._client.delete([f"{head.path}!" for head in heads if head.damaged])

    # Reading

    async def _look(self, name: str) -> list[Head]:
        """The heads of a name, the current one last."""
        found: list[Found] = []
        async with closing(self._client.pages(folder_of(name))) as pages:
            async for page in pages:
                found += page
                if is_part(page[-1].path):  # the heads come before the parts
                    break
        return heads_of(found)

    async def _live(self, name: str) -> Head:
        """The head that is current; raises `NotFound` or `Corrupt`."""
        heads = await self._look(check_name(name))
        if not heads:
            raise NotFound(f"{name} is not here")
        if heads[-1].damaged:
            raise Corrupt(f"{name} is damaged here")
        if heads[-1].kind == Kind.TOMBSTONE:
            raise NotFound(f"{name} was deleted", stamp=heads[-1].stamp)
        return heads[-1]

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        head = await self._live(name)
        start, stop = byte_range or (0, head.size)
        stop = min(stop, head.size)
        info, data = head.info(head.metadata), memoryview(b"")
        if head.inside <= WHOLE:
            info, data = await self._stored(head)
            if head.inside:
                return Blob(info, Bytes(data[start:stop]))
        payload = Stream(max(stop - start, 0), partial(self._pieces, head, start, stop))
        return Blob(info, Bytes(await read_whole(payload)) if payload.size <= WHOLE else payload)

    async def _stored(self, head: Head) -> tuple[BlobInfo, memoryview]:
        """What a head says, and the data in its object, checked."""
        if not head.apart and not head.inside:
            return head.info(head.metadata), memoryview(b"")
        body = await self._client.get(head.path)
        if body is None:
            raise _Gone(head.name)
        split = max(len(body) - head.inside, 0)
        data, meta = body[split:], head.metadata + bytes(body[:split])
        sound = len(data) == head.inside and metadata.hash_of(meta) == head.metadata_hash
        if not sound or (data and checksum_of(data) != head.checksum):
            raise await self._damaged(head)
        return head.info(meta), data

    async def _pieces(self, head: Head, start: int, stop: int) -> AsyncIterator[memoryview]:
        """The checked bytes of a range."""
        if head.inside:
            yield (await self._stored(head))[1][start:stop]
            return

        async def fetch(number: int) -> memoryview | None:
            return await self._client.get(part_path(head.name, head.id, number))

        try:
            async with closing(PARTS.read(fetch, head.name, head.size, start, stop)) as pieces:
                async for piece in pieces:
                    yield piece
        except Corrupt as error:
            raise await self._damaged(head) from error

    async def _damaged(self, head: Head) -> DolmenError:
        """What to raise for a head whose bytes are not what was stored; marks it."""
        if head.id not in [one.id for one in await self._look(head.name)]:
            return _Gone(head.name)
        with suppress(DolmenError):  # whoever reads it learns that it is damaged all the same
            await self._client.put(f"{head.path}!", b"")
        return Corrupt(f"{head.name} is damaged in {self._client.url}")

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        return await self._info(await self._live(name))

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        async with UnderWay[BlobInfo | None]() as ahead:
            async with closing(self._heads(listing)) as heads:
                async for head in heads:
                    ahead.add(self._listed(head))
                    if len(ahead) == WINDOW and (info := await ahead.next()):
                        yield info
            while ahead:
                if info := await ahead.next():
                    yield info

    async def _heads(self, listing: Listing) -> AsyncIterator[Head]:
        names = by_name(self._client, listing.partitions, listing.after)
        async with closing(names):
            async for objects in names:
                for head in heads_of(objects)[-1:]:
                    shown = listing.tombstones or head.kind != Kind.TOMBSTONE
                    named = head.name.startswith(listing.prefix)
                    if shown and named and head.damaged == listing.quarantined:
                        yield head

    async def _listed(self, head: Head) -> BlobInfo | None:
        with suppress(Corrupt, _Gone):
            return await self._info(head)
        return None

    async def _info(self, head: Head) -> BlobInfo:
        """What a head says, with metadata that is in its object."""
        if head.apart and not head.damaged:
            return (await self._stored(head))[0]
        return head.info(head.metadata)

    async def digests(self) -> Digests:
        """See `BlobStore.digests`. Worked out from a listing."""
        slots: defaultdict[int, Slot] = defaultdict(Slot)
        async with closing(self._heads(Listing(tombstones=True))) as heads:
            async for head in heads:
                hashed = hash_of_entry(head.name.encode(), *head.rank)
                slots[partition_of(head.name)].add(head.size, hashed)
        return Digests(slots)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        encoded = check_key(key).encode()
        noted = len(encoded).to_bytes(2, "little") + encoded + value
        await self._client.put(f"notes/{checksum_of(encoded).hex()}", noted, once=True)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`. The first call for a new store creates its identity."""
        notes = {}
        for found in await self._client.all("notes"):
            if (body := await self._client.get(found.path)) is not None:
                stop = 2 + int.from_bytes(body[:2], "little")
                notes[str(body[2:stop], "utf-8")] = bytes(body[stop:])
        identity = await self._client.get(IDENTITY)
        if identity is None:
            await self._client.put(IDENTITY, secrets.token_hex(16).encode(), mode="create")
            identity = await self._client.get(IDENTITY)
        if identity is None:
            raise Unavailable(f"{self._client.url} does not show at once what was written")
        return notes | {IDENTITY: bytes(identity)}

    async def condition(self) -> Condition:
        """See `BlobStore.condition`. Writes a small object, to see whether that works."""
        await self._client.all("notes")
        try:
            await self._client.now(fresh=True)
        except (Full, Refused) as error:
            return Condition(writable=False, reasons=[str(error)])
        return Condition()

    async def aclose(self) -> None:
        """See `BlobStore.aclose`. A write of which more requests are to come is refused them."""
        if self.sweeping is not None:
            await self.sweeping.aclose()
        await self._client.aclose()


class _Gone(Unavailable):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was replaced while it was read: read it again")


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
    store.sweeping = Repeating(
        partial(bucket_uploads.sweep_again, client), wait=bucket_uploads.FIRST
    )
    return store
