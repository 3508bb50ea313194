"""The catalog: what lies in the index, and the accounts that change with it.

Beside the entries: the digests of all partitions, the bytes of every file that an entry refers
to, and the watermark, up to which the log is reflected. A `Change` gathers what a batch of
records does to all of them, for a commit, a recovery and a quarantine alike; it is applied at
once. A file of which nothing is live goes: a blob's own at once, a segment after compaction.

`docs/disk-format.md` has the bytes of keys and values. Read first: `entry`, `index`.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Sequence

from dolmen.digests import Digests
from dolmen.names import PARTITIONS
from dolmen.record import Kind
from dolmen.store import BlobInfo, Listing
from dolmen.stores.volume.entry import Entry, Place, name_of, unpack
from dolmen.stores.volume.index import Index

SLOT = struct.Struct("<IQQQ")
_LOW = (1 << 64) - 1
_WATERMARK = struct.Struct("<III")
_BYTES = struct.Struct("<Q")
_AT_HAND = 16_384
"""Entries kept decoded: a look-up in the index takes longer than the rest of a small read."""
_PAGE = 1_000
"""Entries of a listing that are read at once, or those of one partition."""
_GAP = 16
"""To begin another scan of the index takes longer than to pass over so many partitions."""


class Catalog:
    """The index and its accounts. For the event loop's thread, but for `take_number` and `page`."""

    def __init__(self, index: Index) -> None:
        self.index = index
        packed = index.get(b"fw")
        number, offset, following = _WATERMARK.unpack(packed) if packed else (0, 0, 1)
        self._following: int = following
        self.watermark: Place = number, offset
        """The log is reflected up to this segment, and offset in it."""
        self.live = {
            int.from_bytes(key[2:]): _BYTES.unpack(value)[0]
            for key, value in index.scan(b"fu", b"fv")
        }
        self.dead = {number for number, live in self.live.items() if not live}
        """Files to which nothing refers any more."""
        self.slots = bytearray(SLOT.size * PARTITIONS)
        """The digests of all partitions, packed."""
        for key, slot in index.scan(b"d", b"e"):
            at = int.from_bytes(key[1:]) * SLOT.size
            self.slots[at : at + SLOT.size] = slot
        self.found: OrderedDict[str, Entry] = OrderedDict()  # a dict is slow to find its first
        """Live entries as they were looked up last; one that changes is dropped."""
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Entry | None:
        """The entry of a key; raises `OSError`."""
        value = self.index.get(key)
        return None if value is None else unpack(value)

    def keep(self, name: str, entry: Entry) -> None:
        """Have a live entry at hand for the next look-up, in place of the oldest one."""
        if len(self.found) >= _AT_HAND:
            self.found.popitem(last=False)
        self.found[name] = entry

    def entries(self, start: int = 0, stop: int = PARTITIONS) -> Iterator[tuple[bytes, bytes]]:
        """Keys and packed entries of these partitions, as of one moment; for any thread."""
        end = b"f" if stop == PARTITIONS else b"e" + stop.to_bytes(2)
        return self.index.scan(b"e" + start.to_bytes(2), end)

    def take_number(self) -> int:
        """A number that no file ever had. From any thread."""
        with self._lock:
            self._following += 1
            return self._following - 1

    def know_number(self, number: int) -> None:
        """Never give a number that was seen in the log or the folder."""
        self._following = max(self._following, number + 1)

    def apply(self, change: Change, watermark: Place | None = None) -> None:
        """Carry out what was gathered; the log is reflected up to there. Raises `OSError`."""
        watermark = watermark or self.watermark
        changes: dict[bytes, bytes | None] = {b"fw": _WATERMARK.pack(*watermark, self._following)}
        for key, entry in change.entries.items():
            changes[key] = None if entry is None else entry.pack()
        live: dict[int, int] = {}
        for number, difference in change.live.items():
            live[number] = size = max(self.live.get(number, 0) + difference, 0)
            changes[b"fu" + number.to_bytes(4)] = _BYTES.pack(size)
        slots = self._changed_slots(change)
        for at, slot in slots.items():
            changes[b"d" + (at // SLOT.size).to_bytes(2)] = slot
        self.index.apply(changes)
        self.watermark = watermark
        for at, slot in slots.items():
            self.slots[at : at + SLOT.size] = slot
        for number, size in live.items():
            self.live[number] = size
            if not size:
                self.dead.add(number)
        if self.found:
            for name in change.names:
                self.found.pop(name.decode(), None)

    def quarantine(self, key: bytes, name: bytes, place: Place) -> None:
        """Mark the copy at a place as damaged, if it is still current. Raises `OSError`."""
        current = self.get(key)
        if current is not None and current.data == place and not current.damaged:
            change = Change()
            change.put(key, name, current, current._replace(damaged=True))
            self.apply(change)

    def forget(self, numbers: Collection[int]) -> None:
        """These files are gone, durably. Raises `OSError`."""
        gone = [number for number in numbers if not self.live.get(number)]
        self.index.apply({b"fu" + number.to_bytes(4): None for number in gone})
        for number in gone:
            self.live.pop(number, None)
        self.dead.difference_update(numbers)

    def _changed_slots(self, change: Change) -> dict[int, bytes]:
        """The slots that a change leaves, by their place in `slots`."""
        size = SLOT.size
        changed: dict[int, bytes] = {}
        for partition, more, data, xor in change.digests:
            at = partition * size
            count, held, low, high = SLOT.unpack(changed.get(at) or self.slots[at : at + size])
            changed[at] = SLOT.pack(count + more, held + data, low ^ xor & _LOW, high ^ xor >> 64)
        return changed

    def page(
        self, left: deque[tuple[int, int]], listing: Listing, after: tuple[int, str]
    ) -> list[BlobInfo]:
        """What is to be listed of whole partitions at the beginning of `left`, which loses them.

        So a name that is there throughout a listing comes exactly once. `after`: the partition
        and the name to begin behind. Blocks; for a thread.
        """
        page: list[tuple[int, str, Entry]] = []
        prefix, partitions = listing.prefix, listing.partitions
        wanted = partitions if isinstance(partitions, range) else frozenset(partitions)
        seen = 0
        while left and seen < _PAGE:
            start, stop = left.popleft()
            last = start
            for key, value in self.entries(start, stop):
                partition = int.from_bytes(key[1:3])
                if partition != last and seen >= _PAGE:
                    left.appendleft((partition, stop))
                    break
                last, seen = partition, seen + 1
                if partition not in wanted:
                    continue
                name = name_of(key)
                if (partition, name) <= after or not name.startswith(prefix):
                    continue
                entry = unpack(value)
                shown = listing.tombstones or entry.kind != Kind.TOMBSTONE
                if shown and entry.damaged == listing.quarantined:
                    page.append((partition, name, entry))
        page.sort()
        return [entry.info(name) for _, name, entry in page]


class Change:
    """What a batch does to the catalog."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry | None] = {}
        self.digests: list[tuple[int, int, int, int]] = []
        """Partition, more entries, more bytes, XOR of the hashes."""
        self.live: dict[int, int] = {}
        self.names: list[bytes] = []

    def put(self, key: bytes, name: bytes, old: Entry | None, new: Entry | None) -> None:
        """Put an entry (None: nothing) in place of the one that is current now."""
        self.entries[key] = new
        self.names.append(name)
        partition = int.from_bytes(key[1:3])
        for entry, sign in ((old, -1), (new, 1)):
            if entry is None:
                continue
            if not entry.damaged:
                self.digests.append((partition, sign, sign * entry.length, entry.hash(name)))
            for number, size in entry.usage(name):
                self.live[number] = self.live.get(number, 0) + sign * size


def runs(partitions: Sequence[int], begin: int) -> deque[tuple[int, int]]:
    """Ranges that hold these ascending partitions, from `begin` on, and others in short gaps."""
    if isinstance(partitions, range) and partitions.step == 1:
        return deque([(max(partitions.start, begin), partitions.stop)])
    found: deque[tuple[int, int]] = deque()
    for partition in partitions:
        if partition < begin:
            continue
        start = found.pop()[0] if found and partition - found[-1][1] < _GAP else partition
        found.append((start, partition + 1))
    return found


def digests_of(slots: bytes) -> Digests:
    """The digests in a catalog's packed slots, which are laid out as those of `Digests`."""
    size, none = SLOT.size, bytes(4)
    return Digests.decode(
        b"".join(
            [
                (at // size).to_bytes(2, "little") + slots[at : at + size]
                for at in range(0, len(slots), size)
                if slots[at : at + 4] != none
            ]
        )
    )
