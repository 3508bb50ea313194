"""The record: the one framing of a blob, on disk, on the wire and in an export.

Little-endian. A header of 76 bytes, the name, the metadata, the data, and then
one CRC-32C (Castagnoli, RFC 3720 appendix B.4) for every 64 KiB of data, so a
range is checked without reading the rest:

    offset size  field
         0    4  magic, b"dlmn"
         4    1  version, 1
         5    1  kind
         6    1  length of the name, 0 to 128
         7    1  zero
         8    2  length of the metadata, 0 to 16,384
        10    2  zero
        12    8  length of the data
        20    8  stamp
        28    8  arrived: the second since 1970 in which the store took it
        36   16  checksum: the first half of BLAKE3 over the data
        52   16  owner: the segment the record was written to; zero on the wire
        68    4  flushed: how much of the segment was known to be on disk when this
                 record was written; zero on the wire
        72    4  CRC-32C of bytes 0 to 71, the name and the metadata

The owner keeps an old block of a reused file from being believed; `flushed` tells
a record torn by a power cut (nothing behind it was written after it had been
flushed) from one damaged later (something was). The header is enough to skip a
record without reading its data. `docs/disk-format.md` gives the reasons.
Everything here is pure: bytes in, bytes out.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Literal

from crc32c import crc32c

from dolmen.errors import Corrupt
from dolmen.metadata import METADATA_MAX
from dolmen.names import NAME_MAX

MAGIC = b"dlmn"
VERSION = 1
BLOCK = 65_536
HEADER_SIZE = 76
CHECKSUM_AT = 36
HEAD_MAX = HEADER_SIZE + NAME_MAX + METADATA_MAX
NOBODY = bytes(16)

_HEADER = struct.Struct("<4sBBBxHxxQQQ16s16sI")
_CRC = struct.Struct("<I")
_KEEP = 0
"""A block takes 3 µs, and waiting for the interpreter's lock after each of them far more."""


class Kind(enum.IntEnum):
    """What a record says. Of two writes with equal stamps the higher kind wins."""

    BLOB = 1
    MANIFEST = 2
    TOMBSTONE = 3
    TOUCH = 4
    """A new stamp and metadata for the blob of this name and checksum, without its data. On
    disk, its data says where the blob's data lies."""
    REMOVAL = 5
    """Only on disk: this store dropped its copy, and nothing was deleted."""
    REFUSED = 7
    """Only on the wire and in archives: this blob can't be given; the metadata says why."""
    MARK = 8
    """Where a segment begins; on the wire and in archives what follows and where one ends, the
    metadata is JSON."""


@dataclass(slots=True)
class Head:
    """A decoded header with its name and metadata. Lengths in bytes."""

    kind: int
    name: bytes
    metadata: bytes
    length: int
    stamp: int
    arrived: int
    checksum: bytes
    owner: bytes
    flushed: int

    @property
    def data_offset(self) -> int:
        """Where the data begins, counted from the record's start."""
        return HEADER_SIZE + len(self.name) + len(self.metadata)

    @property
    def size(self) -> int:
        """The whole record's length."""
        return record_size(len(self.name), len(self.metadata), self.length)


def sums_size(length: int) -> int:
    """How many bytes of block checksums follow `length` bytes of data."""
    return 4 * ((length + BLOCK - 1) // BLOCK)


def head_size(header: bytes | memoryview, offset: int = 0) -> int:
    """How many bytes stand before the data, told by the first `HEADER_SIZE` of them.

    Not yet checked: `decode_head` does that once they are all there.
    """
    return HEADER_SIZE + header[offset + 6] + header[offset + 8] + (header[offset + 9] << 8)


def record_size(name: int, metadata: int, length: int) -> int:
    """The length of a record whose name, metadata and data have these lengths."""
    return HEADER_SIZE + name + metadata + length + sums_size(length)


def encode_head(
    kind: int,
    name: bytes,
    metadata: bytes,
    length: int,
    stamp: int,
    checksum: bytes,
    *,
    arrived: int = 0,
    owner: bytes = NOBODY,
    flushed: int = 0,
) -> bytes:
    """Everything of a record that stands before its data."""
    header = _HEADER.pack(
        MAGIC, VERSION, kind, len(name), len(metadata),
        length, stamp, arrived, checksum, owner, flushed,
    )  # fmt: skip
    rest = name + metadata
    return header + _CRC.pack(crc32c(rest, crc32c(header))) + rest


def decode_head(buffer: bytes | memoryview, offset: int = 0) -> Head:
    """The head of the record at `offset`; raises `Corrupt` when none stands there.

    The buffer must reach to the end of the metadata (`HEAD_MAX` bytes are always
    enough); a shorter one counts as damage.
    """
    if len(buffer) - offset < HEADER_SIZE:
        raise Corrupt("a record's header is cut short")
    magic, version, kind, name_length, metadata_length, *fixed = _HEADER.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise Corrupt("no record begins here")
    if version != VERSION:
        raise Corrupt(f"a record of version {version}; this dolmen reads version {VERSION}")
    end = offset + HEADER_SIZE + name_length + metadata_length
    if end > len(buffer):
        raise Corrupt("a record's name or metadata is cut short")
    rest = bytes(buffer[offset + HEADER_SIZE : end])
    (crc,) = _CRC.unpack_from(buffer, offset + HEADER_SIZE - 4)
    if crc32c(rest, crc32c(buffer[offset : offset + HEADER_SIZE - 4])) != crc:
        raise Corrupt("a record's header fails its checksum")
    length, stamp, arrived, checksum, owner, flushed = fixed
    name, metadata = rest[:name_length], rest[name_length:]
    return Head(kind, name, metadata, length, stamp, arrived, checksum, owner, flushed)


def block_sums(data: bytes | bytearray | memoryview) -> bytes:
    """The checksums that follow this data: four bytes for every 64 KiB begun."""
    if len(data) <= BLOCK:
        return _CRC.pack(crc32c(data)) if data else b""
    view = memoryview(data)
    blocks = (view[at : at + BLOCK] for at in range(0, len(view), BLOCK))
    return b"".join([_CRC.pack(crc32c(block, gil_release_mode=_KEEP)) for block in blocks])


def blocks_match(data: bytes | memoryview, sums: bytes | memoryview) -> bool:
    """Whether data that begins at a block's start has these block checksums."""
    return block_sums(data) == sums


def data_in(
    record: bytes | bytearray | memoryview, name: bytes, inner: int, length: int, checksum: bytes
) -> memoryview | Literal[False]:
    """The data in a whole record; False unless it is the one meant and fits the block checksums.

    `inner` is the length of its metadata.
    """
    start = HEADER_SIZE + len(name) + inner
    view = memoryview(record)
    head = bytes(view[:start])  # views are compared byte by byte
    if (
        head.startswith(checksum, CHECKSUM_AT)
        and head.startswith(name, HEADER_SIZE)
        and block_sums(view[start : start + length]) == view[start + length :]
    ):
        return view[start : start + length]
    return False


class BlockSums:
    """Block checksums of data that arrives in pieces of any length."""

    def __init__(self) -> None:
        self._sums = bytearray()
        self._crc = 0
        self._filled = 0

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next piece."""
        view = memoryview(piece)
        while len(view):
            part = view[: BLOCK - self._filled]
            self._crc = crc32c(part, self._crc, gil_release_mode=_KEEP)
            self._filled += len(part)
            if self._filled == BLOCK:
                self._sums += _CRC.pack(self._crc)
                self._crc = self._filled = 0
            view = view[len(part) :]

    def digest(self) -> bytes:
        """The checksums of all pieces so far."""
        return bytes(self._sums) + (_CRC.pack(self._crc) if self._filled else b"")
