"""The catalog: the index, and the accounts that change with it.

Live bytes of every segment (which compaction goes by), numbers of files, and blobs' own
files that nothing refers to any more. A `Change` gathers what a batch of records does to
all of them, for a commit, a recovery and a quarantine alike; it is applied at once, with
the watermark: how far the log is reflected.

Facts in the index: `w` the watermark: segment, offset, the lowest number of a file that may
be unfinished, the next number (4 bytes each, little-endian); `u` and a number (big-endian):
live bytes (8); `g` and a number: a blob's own file that is to be removed.

Read first: `entry`, `index`.
"""

from __future__ import annotations

import struct
import threading
from typing import NamedTuple

from dolmen.digests import entry_hash
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import DigestChange, Index

_WATERMARK = struct.Struct("<IIII")
_BYTES = struct.Struct("<Q")
_AT_HAND = 16_384
"""Entries kept decoded: a look-up in the index takes longer than the rest of a small read."""


class Watermark(NamedTuple):
    """The log is reflected in the index up to `offset` of segment `number`."""

    number: int
    offset: int
    floor: int
    """Every file with a lower number is referred to by the index, or was before this."""
    following: int
    """The lowest number not yet given to a file."""


class Catalog:
    """The index and its accounts. For the event loop's thread, but for `take_number`."""

    def __init__(self, index: Index) -> None:
        self.index = index
        facts = index.facts()
        watermark = facts.get(b"w")
        self.watermark = Watermark(*(_WATERMARK.unpack(watermark) if watermark else (0, 0, 0, 1)))
        self.live = {
            int.from_bytes(key[1:]): _BYTES.unpack(value)[0]
            for key, value in facts.items()
            if key.startswith(b"u")
        }
        self.unreferenced = {int.from_bytes(key[1:]) for key in facts if key.startswith(b"g")}
        """Blobs' own files that are to be removed."""
        self.floor: int | None = self.watermark.floor
        """While the log is replayed: no file from this number on is settled."""
        self._unsettled: set[int] = set()
        """Numbers of files to which neither the index nor the watermark refers yet."""
        self.found: dict[str, Entry] = {}
        """Live entries as they were looked up last; one that changes is dropped."""
        self._following = self.watermark.following
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Entry | None:
        """The entry of a key; raises `OSError`."""
        value = self.index.get(key)
        return None if value is None else unpack(value)

    def keep(self, name: str, entry: Entry) -> None:
        """Have a live entry at hand for the next look-up, in place of the oldest one."""
        if len(self.found) >= _AT_HAND:
            del self.found[next(iter(self.found))]
        self.found[name] = entry

    def take_number(self) -> int:
        """A number that no file ever had, for a file that is not settled yet. From any thread."""
        with self._lock:
            number = self._following
            self._following += 1
            self._unsettled.add(number)
        return number

    def settle(self, number: int) -> None:
        """The file of this number was committed, or removed."""
        with self._lock:
            self._unsettled.discard(number)

    def know_number(self, number: int) -> None:
        """Never give a number that was seen in the log or the folder."""
        self._following = max(self._following, number + 1)

    def apply(self, change: Change, number: int, offset: int) -> None:
        """Carry out what was gathered; the log is reflected up to this place. Raises `OSError`."""
        with self._lock:
            self._unsettled.discard(number)
            floor = min(self._unsettled, default=self._following)
            if self.floor is not None:
                floor = min(floor, self.floor)
            watermark = Watermark(number, offset, floor, self._following)
        facts: dict[bytes, bytes | None] = {b"w": _WATERMARK.pack(*watermark)}
        for segment, difference in change.live.items():
            live = self.live.get(segment, 0) + difference
            facts[b"u" + segment.to_bytes(4)] = _BYTES.pack(max(live, 0))
        for freed in change.freed:
            facts[b"g" + freed.to_bytes(4)] = b""
        entries = [
            (key, None if entry is None else entry.pack()) for key, entry in change.entries.items()
        ]
        self.index.apply(entries, change.digests, facts)
        if self.found:
            for name in change.names:
                self.found.pop(name.decode(), None)
        self.watermark = watermark
        for segment, difference in change.live.items():
            self.live[segment] = max(self.live.get(segment, 0) + difference, 0)
        self.unreferenced.update(change.freed)

    def forget_files(self, segments: list[int], blobs: list[int]) -> None:
        """These files are gone, durably. Raises `OSError`."""
        facts: dict[bytes, bytes | None] = {b"u" + n.to_bytes(4): None for n in segments}
        facts.update({b"g" + n.to_bytes(4): None for n in blobs})
        self.index.apply((), (), facts)
        for segment in segments:
            self.live.pop(segment, None)
        self.unreferenced.difference_update(blobs)


class Change:
    """What a batch does to the catalog."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry | None] = {}
        self.digests: list[DigestChange] = []
        self.live: dict[int, int] = {}
        self.freed: list[int] = []
        self.names: list[bytes] = []

    def put(self, key: bytes, name: bytes, old: Entry | None, new: Entry | None) -> None:
        """Put an entry (None: nothing) in place of the one that is current now."""
        self.entries[key] = new
        self.names.append(name)
        partition = int.from_bytes(key[:2])
        live = self.live
        if old is not None:
            if not old.damaged:
                self.digests.append((partition, -1, -old.length, hash_of(name, old)))
            for segment, size in old.usage(name):
                live[segment] = live.get(segment, 0) - size
            if old.alone and (new is None or new.data != old.data):
                self.freed.append(old.data[0])
        if new is not None:
            if not new.damaged:
                self.digests.append((partition, 1, new.length, hash_of(name, new)))
            for segment, size in new.usage(name):
                live[segment] = live.get(segment, 0) + size


def hash_of(name: bytes, entry: Entry) -> int:
    """What an entry adds to the digest of its partition."""
    return entry_hash(name, entry.stamp, entry.kind, entry.checksum, entry.metadata)
