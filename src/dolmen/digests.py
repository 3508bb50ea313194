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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import ge

from blake3 import blake3

from dolmen.errors import BadContent
from dolmen.metadata import hash_of

_ENTRY = struct.Struct("<HIQ16s")
_HASHED = struct.Struct("<BBQ16s16s")


@dataclass(slots=True)
class Slot:
    """The digest of one partition."""

    count: int = 0
    size: int = 0
    xor: int = 0

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


def entry_hash(name: bytes, stamp: int, kind: int, checksum: bytes, metadata: bytes) -> int:
    """The hash of one entry, as an integer: the first 16 bytes of a BLAKE3, little-endian.

    Over 1 byte length of the name, 1 byte kind, 8 bytes stamp (little-endian), the
    checksum, the hash of the metadata (`metadata.hash_of`), the name.
    """
    return hash_of_entry(name, stamp, kind, checksum, hash_of(metadata))


def hash_of_entry(name: bytes, stamp: int, kind: int, checksum: bytes, metadata_hash: bytes) -> int:
    """`entry_hash`, for those who know the metadata by its hash only."""
    fixed = _HASHED.pack(len(name), kind, stamp, checksum, metadata_hash)
    return int.from_bytes(blake3(fixed + name).digest(16), "little")


class Digests:
    """The digests of a whole store: partition to `Slot`, empty partitions left out.

    Kept encoded: whoever only compares or passes them on never makes 65,536 slots.
    """

    __slots__ = ("_encoded", "_slots")

    def __init__(self, slots: dict[int, Slot]) -> None:
        self._slots: dict[int, Slot] | None = {
            partition: slots[partition] for partition in sorted(slots) if slots[partition].count
        }
        self._encoded = b"".join(
            _ENTRY.pack(partition, slot.count, slot.size, slot.xor.to_bytes(16, "little"))
            for partition, slot in self._slots.items()
        )

    @property
    def slots(self) -> dict[int, Slot]:
        """Partitions, ascending, with their digests; not to be changed."""
        if self._slots is None:
            self._slots = {
                partition: Slot(count, size, int.from_bytes(xor, "little"))
                for partition, count, size, xor in _ENTRY.iter_unpack(self._encoded)
            }
        return self._slots

    @property
    def counts(self) -> dict[int, int]:
        """Entries of each partition that holds any; the partitions ascend."""
        return dict(zip(self._column("H", 0), self._column("I", 2), strict=True))

    @property
    def count(self) -> int:
        """Entries in all partitions, tombstones included."""
        return sum(self._column("I", 2))

    @property
    def size(self) -> int:
        """Bytes of data in all partitions."""
        return sum(self._column("Q", 6))

    @property
    def root(self) -> str:
        """32 hex digits that are equal exactly when two stores hold the same."""
        return blake3(self._encoded).hexdigest(16)

    def _column(self, form: str, offset: int) -> Sequence[int]:
        """One field of every entry: its form in `struct` and its place in the entry."""
        width = struct.calcsize(f"<{form}")
        column = bytearray(len(self._encoded) // _ENTRY.size * width)
        for byte in range(width):
            column[byte::width] = self._encoded[offset + byte :: _ENTRY.size]
        return struct.unpack(f"<{len(column) // width}{form}", column)

    def encode(self) -> bytes:
        """The encoding described above; the order of partitions is ascending."""
        return self._encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Digests:
        """Read what `encode` wrote; raises `BadContent` for anything else."""
        if len(encoded) % _ENTRY.size:
            raise BadContent("digests are cut short")
        digests = cls({})
        digests._slots, digests._encoded = None, encoded
        partitions = digests._column("H", 0)
        if any(map(ge, partitions, partitions[1:])) or 0 in digests._column("I", 2):
            raise BadContent("digests are not in ascending order of partitions")
        return digests

    def differing(self, other: Digests) -> Iterator[int]:
        """The partitions in which two stores differ, ascending."""
        if self == other:
            return
        ours, theirs = self._entries(), other._entries()
        for partition in sorted(ours.keys() | theirs.keys()):
            if ours.get(partition) != theirs.get(partition):
                yield partition

    def _entries(self) -> dict[int, bytes]:
        size, encoded = _ENTRY.size, self._encoded
        entries = [encoded[at : at + size] for at in range(0, len(encoded), size)]
        return dict(zip(self._column("H", 0), entries, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digests) and self._encoded == other._encoded
