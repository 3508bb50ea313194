"""The reading half of a store in a bucket: look the heads up, check every byte, list.

Every read begins with a listing of the heads of its name; what it then finds gone was replaced or
removed meanwhile, and it looks again. Read first: `dolmen.stores.bucket`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import ClassVar

from dolmen import metadata
from dolmen.closing import closing
from dolmen.digests import Digests, Slot, hash_of_entry
from dolmen.errors import Corrupt, DolmenError, NotFound, Unavailable
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, Stream
from dolmen.record import Kind
from dolmen.store import EVERYTHING, Blob, BlobInfo, Listing, Range
from dolmen.stores.base import OneByOne
from dolmen.stores.bucket_client import Client
from dolmen.stores.bucket_data import read
from dolmen.stores.bucket_head import INLINE, Head, by_name, folder_of, heads_of

WHOLE = 1 << 20
"""What is read of a blob is read before it is answered, up to this size; more is streamed."""
ROUNDS = 5
"""How often to look again where what was seen is gone before it was read."""
_AT_ONCE = 64


class BucketReader(OneByOne):
    """What a store in a bucket needs for reading."""

    reads_ahead: ClassVar[int] = 32

    def __init__(self, client: Client) -> None:
        self._client = client

    async def _look(self, name: str) -> list[Head]:
        """The heads of a name, the current one last."""
        return heads_of(await self._client.all(f"heads/{folder_of(name)}"))

    async def _current(self, name: str) -> tuple[list[Head], BlobInfo | None]:
        """The heads of a name, and what the current one says."""
        for _ in range(ROUNDS):
            heads = await self._look(name)
            if not heads:
                return heads, None
            with suppress(Corrupt):  # it is marked now: look again
                if (info := await self._info(heads[-1])) is not None:
                    return heads, info
        raise restless(name)

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
        for _ in range(ROUNDS):
            head = _live(name, await self._look(name))
            if (stored := await self._stored(head)) is not None:
                meta, data = stored
                start, stop = byte_range or (0, head.size)
                payload = await self._payload(head, data, start, min(stop, head.size))
                return Blob(head.info(meta), payload)
        raise restless(name)

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


def restless(name: str) -> Unavailable:
    """What to raise where a name never comes to rest."""
    return Unavailable(f"{name} is being written by others all the time: try again")
