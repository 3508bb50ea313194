"""Digests: per partition what a store holds, so two stores can be compared at once.

For each partition the number of entries, their bytes, and the XOR of a 128-bit
hash of every entry (name, stamp, kind, metadata, checksum; tombstones included).
XOR makes it independent of order and lets an entry be taken out again. Equal
content gives equal digests in every engine; different content gives different
ones except with a chance of 2^-128 for each pair compared by accident.

Encoded (little-endian): for each partition that holds anything, ascending, 2
bytes partition, 4 bytes count, 8 bytes of data held, 16 bytes XOR. The *root* is
the first 16 bytes of the BLAKE3 of that, in hex.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from blake3 import blake3

from dolmen.errors import BadContent
from dolmen.metadata import hash_of

_ENTRY = struct.Struct("<HIQ16s")
_HASHED = struct.Struct("<BBQ16s16s")


class Slot:
    """The digest of one partition."""

    __slots__ = ("count", "size", "xor")

    def __init__(self, count: int = 0, size: int = 0, xor: int = 0) -> None:
        self.count = count
        self.size = size
        self.xor = xor

    def add(self, size: int, entry: int) -> None:
        """Take in an entry of `size` bytes with this hash."""
        self.count += 1
        self.size += size
        self.xor ^= entry

    def drop(self, size: int, entry: int) -> None:
        """Take an entry out again."""
        self.count -= 1
        self.size -= size
        self.xor ^= entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and (self.count, self.size, self.xor) == (
            other.count,
            other.size,
            other.xor,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Slot({self.count}, {self.size}, {self.xor:#x})"


def entry_hash(name: bytes, stamp: int, kind: int, checksum: bytes, metadata: bytes) -> int:
    """The hash of one entry, as an integer: the first 16 bytes of a BLAKE3, little-endian.

    Over 1 byte length of the name, 1 byte kind, 8 bytes stamp (little-endian), the
    checksum, the hash of the metadata (`metadata.hash_of`), the name.
    """
    fixed = _HASHED.pack(len(name), kind, stamp, checksum, hash_of(metadata))
    return int.from_bytes(blake3(fixed + name).digest(16), "little")


class Digests:
    """The digests of a whole store: partition to `Slot`, empty partitions left out."""

    __slots__ = ("_encoded", "slots")

    def __init__(self, slots: dict[int, Slot]) -> None:
        self.slots = {
            partition: slots[partition] for partition in sorted(slots) if slots[partition].count
        }
        self._encoded: bytes | None = None

    @property
    def count(self) -> int:
        """Entries in all partitions, tombstones included."""
        return sum(slot.count for slot in self.slots.values())

    @property
    def size(self) -> int:
        """Bytes of data in all partitions."""
        return sum(slot.size for slot in self.slots.values())

    @property
    def root(self) -> str:
        """32 hex digits that are equal exactly when two stores hold the same."""
        return blake3(self.encode()).hexdigest(16)

    def encode(self) -> bytes:
        """The encoding described above; the order of partitions is ascending."""
        if self._encoded is None:
            self._encoded = b"".join(
                _ENTRY.pack(partition, slot.count, slot.size, slot.xor.to_bytes(16, "little"))
                for partition, slot in self.slots.items()
            )
        return self._encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Digests:
        """Read what `encode` wrote; raises `BadContent` for anything else."""
        if len(encoded) % _ENTRY.size:
            raise BadContent("digests are cut short")
        slots: dict[int, Slot] = {}
        last = -1
        for partition, count, size, xor in _ENTRY.iter_unpack(encoded):
            if partition <= last or not count:
                raise BadContent("digests are not in ascending order of partitions")
            slots[partition] = Slot(count, size, int.from_bytes(xor, "little"))
            last = partition
        return cls(slots)

    def differing(self, other: Digests) -> Iterator[int]:
        """The partitions in which two stores differ, ascending."""
        for partition in sorted(self.slots.keys() | other.slots.keys()):
            if self.slots.get(partition) != other.slots.get(partition):
                yield partition

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digests) and self.slots == other.slots

    __hash__ = None  # type: ignore[assignment]
