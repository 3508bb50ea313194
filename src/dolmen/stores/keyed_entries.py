"""What lies under the keys of a `KeyedStore`, and how it changes: in one step, or not at all.

Every key begins with a letter and a partition (4 hex digits), so keys of one letter ascend in
list order:

    e PARTITION NAME   an entry
    d PARTITION        the digest of a partition: count, bytes, XOR (`dolmen.digests`)
    n0000              the notes of the store (`dolmen.stores.keyed`)
    p, u               parts of large blobs (`dolmen.stores.keyed_parts`)

An entry is its *front* and the data of a blob of up to 64 KiB; that of larger ones is in parts.
The front: 1 byte that is 1 in quarantine, and the head of a record (`dolmen.record`) whose owner
is the upload that wrote the parts, or zero. Entries with equal fronts are the same write. Those
in quarantine are not counted in the digest.

Read first: `dolmen.stores.driver`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from struct import Struct
from typing import TypeVar
from weakref import WeakValueDictionary

from dolmen.closing import closing
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import Corrupt, Unavailable
from dolmen.names import checksum_of, partition_of
from dolmen.record import HEADER_SIZE, NOBODY, Kind, decode_head, encode_head, head_size
from dolmen.store import NO_CHECKSUM, BlobInfo
from dolmen.stores.driver import Change, Driver
from dolmen.stores.keyed_parts import KeyedParts, Upload

END = b"\xff"
"""Behind whatever begins alike."""
_ATTEMPTS = 100
"""How often a change is decided again because another process was faster, each time."""
_SLOT = Struct("<IQ16s")
T = TypeVar("T")


@dataclass(slots=True)
class Entry:
    """What is kept under a name.

    `upload` names its parts, zero where `body` is the data, which is cut short in an entry
    that was read from a head. Of one that is `lost` only the name can be read.
    """

    info: BlobInfo
    upload: bytes = NOBODY
    body: bytes | memoryview = b""
    damaged: bool = False
    lost: bool = False
    front: bytes = b""
    """As it is stored; set by `sealed` and `decode`."""

    def sealed(self, stamp: int, arrived: int, metadata: bytes) -> Entry:
        """The entry with another stamp, time of arrival and metadata, ready to be stored."""
        info = replace(self.info, stamp=stamp, arrived=arrived, metadata=metadata)
        name, kind, checksum = info.name.encode(), info.kind, info.checksum
        head = encode_head(
            kind, name, metadata, info.size, stamp, checksum, arrived=arrived, owner=self.upload
        )
        return replace(self, info=info, front=bytes([self.damaged]) + head)

    def check_body(self) -> None:
        """Raise `Corrupt` unless the body is the data of an entry without parts."""
        info = self.info
        right = NO_CHECKSUM if info.kind == Kind.TOMBSTONE else checksum_of(self.body)
        if len(self.body) != info.size or right != info.checksum:
            raise Corrupt(f"the data of {info.name} fails its checksum")


def entry_key(name: str) -> bytes:
    """The key of an entry."""
    return b"e%04x%b" % (partition_of(name), name.encode())


def decode(key: bytes, value: bytes) -> Entry:
    """The entry under a key, whose value is this or begins so; front and all."""
    try:
        head = decode_head(value, 1)
    except Corrupt:
        info = BlobInfo(key[5:].decode(), 0, Kind.BLOB, 0, NO_CHECKSUM)
        return Entry(info, damaged=True, lost=True, front=value)
    name, size = head.name.decode(), 1 + head.data_offset
    info = BlobInfo(
        name, head.length, head.kind, head.stamp, head.checksum, head.metadata, head.arrived
    )
    return Entry(info, head.owner, memoryview(value)[size:], value[0] == 1, front=value[:size])


class Entries:
    """All entries of a store, and the digests of their partitions."""

    def __init__(self, driver: Driver, parts: KeyedParts) -> None:
        self._driver, self._parts = driver, parts
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._slots: dict[int, bytes | None] = {}

    async def get(self, name: str, *, whole: bool = False) -> Entry | None:
        """The entry of a name, with its body where it is wanted."""
        key = entry_key(name)
        [value] = await self._driver.get([key], head=not whole)
        return await self._decode(key, value)

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Entry]:
        """The entries under the keys in this span, without their bodies."""
        async with closing(self._driver.scan(start, stop)) as pages:
            async for page in pages:
                for key, value in page:
                    if (entry := await self._decode(key, value)) is not None:
                        yield entry

    async def change(
        self,
        name: str,
        decide: Callable[[Entry | None], Awaitable[tuple[T, Entry | None]]],
        *,
        guess: bool = False,
        grows: bool = False,
        upload: Upload | None = None,
    ) -> T:
        """Replace the entry of a name by what `decide` makes of it, the same for no change.

        `decide` returns an answer beside the entry. With `guess` it is asked first about a free
        name, without a look at the server, and what it is asked later has no body. Changes of
        one partition in one process take turns, so only other processes ever interfere.
        """
        partition = partition_of(name)
        keys = [entry_key(name), b"d%04x" % partition, *([upload.key] if upload else [])]
        async with self._turns.setdefault(partition, asyncio.Lock()):
            found: Sequence[bytes | None] = [None, self._slots.get(partition)]
            if not guess:
                found = await self._driver.get(keys)
            for _ in range(_ATTEMPTS):
                current = await self._decode(keys[0], found[0])
                # Nobody knows what a lost one was, so anything may replace it.
                known = None if current and current.lost else current
                answer, new = await decide(known)
                if new is known:
                    return answer
                body = b"".join((new.front, new.body)) if new else None
                changes = [Change(keys[0], current.front if current else None, body)]
                counted = None
                if self._driver.capabilities.digests:
                    counted = await self._counted(partition, found[1], current, new)
                    changes.append(Change(keys[1], found[1], counted))
                if current and current.upload not in (NOBODY, new.upload if new else NOBODY):
                    changes.append(self._parts.replaced(name, current.upload, current.info.size))
                if upload:
                    changes.append(Change(upload.key, upload.mark, None))
                if await self._driver.swap(changes, grows=grows):
                    self._slots[partition] = counted
                    return answer
                found = await self._driver.get(keys, head=guess)
                if upload and found[2] != upload.mark:
                    raise Unavailable(f"the upload of {name} took over a day; start again")
        raise Unavailable(f"{name} was changed by others {_ATTEMPTS} times meanwhile; try again")

    async def _counted(
        self, partition: int, value: bytes | None, old: Entry | None, new: Entry | None
    ) -> bytes | None:
        """The digest of a partition, which is `value`, with one entry in place of another."""
        count, size, xor = _SLOT.unpack(value) if value else (0, 0, b"")
        slot = Slot(count, size, int.from_bytes(xor, "little"))
        if old is not None and old.lost:  # it was counted as what it was
            slot, start = Slot(), b"e%04x" % partition
            async with closing(self.scan(start, start + END)) as entries:
                async for entry in entries:
                    _count(entry, slot.add)
        elif old is not None:
            _count(old, slot.drop)
        if new is not None:
            _count(new, slot.add)
        if slot.count <= 0:  # an engine that evicts may have dropped some
            return None
        return _SLOT.pack(slot.count, max(slot.size, 0), slot.xor.to_bytes(16, "little"))

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        if not self._driver.capabilities.digests:
            slots: defaultdict[int, Slot] = defaultdict(Slot)
            async with closing(self.scan(b"e0000", b"effff" + END)) as entries:
                async for entry in entries:
                    _count(entry, slots[partition_of(entry.info.name)].add)
            return Digests(slots)
        encoded: list[bytes] = []
        async with closing(self._driver.scan(b"d0000", b"dffff" + END)) as pages:
            async for page in pages:
                for key, value in page:
                    encoded += (int(key[1:], 16).to_bytes(2, "little"), value)
        return Digests.decode(b"".join(encoded))

    async def _decode(self, key: bytes, value: bytes | None) -> Entry | None:
        """The entry whose value is this, or begins so."""
        if value is not None and HEADER_SIZE < len(value) < 1 + head_size(value, 1):
            [value] = await self._driver.get([key])
        return decode(key, value) if value is not None else None


def _count(entry: Entry, count: Callable[[int, int], None]) -> None:
    """Take an entry into the digest of its partition, or out of it."""
    info = entry.info
    if not entry.damaged:
        hashed = entry_hash(info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata)
        count(info.size, hashed)
