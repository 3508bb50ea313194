"""Index entries: where a blob lies and all that `stat`, `list` and `digests` say of it.

The key is in `key`. The value, little-endian, 51 bytes and the metadata:

    4  number of the segment         4  offset of the record in it
    2  length of the metadata inside the record (a revision may have given others)
    6  length of the data            8  stamp
    6  sequence                      1  kind; 0x80 is added to a quarantined copy
   16  checksum                      4  second of arrival
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dolmen.record import BLOCK, HEADER_SIZE, Kind
from dolmen.store import BlobInfo

_VALUE = struct.Struct("<IIHIHQIHB16sI")
_DAMAGED = 0x80
_LOW = 0xFFFF_FFFF
_SIZE = _VALUE.size


class Entry(NamedTuple):
    """One entry. `kind` REMOVAL says that nothing stands (only in *recent*)."""

    segment: int
    offset: int
    inner: int
    length: int
    stamp: int
    sequence: int
    kind: int
    checksum: bytes
    arrived: int
    metadata: bytes
    damaged: bool = False

    def pack(self) -> bytes:
        """The value as it is stored."""
        return (
            _VALUE.pack(
                self.segment,
                self.offset,
                self.inner,
                self.length & _LOW,
                self.length >> 32,
                self.stamp,
                self.sequence & _LOW,
                self.sequence >> 32,
                self.kind | _DAMAGED if self.damaged else self.kind,
                self.checksum,
                self.arrived,
            )
            + self.metadata
        )

    def info(self, name: str) -> BlobInfo:
        """What the contract tells of it."""
        return BlobInfo(
            name, self.length, self.kind, self.stamp, self.checksum, self.metadata, self.arrived
        )

    def data_start(self, name: bytes) -> int:
        """Where the data begins in the record that holds it."""
        return HEADER_SIZE + len(name) + self.inner

    def record_size(self, name: bytes) -> int:
        """The length of that record."""
        length = self.length
        blocks = (length + BLOCK - 1) // BLOCK
        return HEADER_SIZE + len(name) + self.inner + length + 4 * blocks


def unpack(value: bytes) -> Entry:
    """The entry that `Entry.pack` wrote."""
    segment, offset, inner, low, high, stamp, slow, shigh, kind, checksum, arrived = (
        _VALUE.unpack_from(value)
    )
    return _entry(
        (
            segment,
            offset,
            inner,
            low | high << 32,
            stamp,
            slow | shigh << 32,
            kind & ~_DAMAGED,
            checksum,
            arrived,
            value[_SIZE:],
            kind >= _DAMAGED,
        )
    )


_entry = Entry._make  # a third faster than the call


def stands(entry: Entry | None) -> bool:
    """Whether something stands: a blob, a manifest or a tombstone."""
    return entry is not None and entry.kind != Kind.REMOVAL
