r"""Segments: append-only files of records. The order of the log is (number, offset).

A segment begins with a header of 64 bytes (little-endian): magic `dlmnseg\n` (8), version (4),
its number (4), its owner (16: random, in every record of the file, so an old block of a
reused file is never believed), zeros (28), CRC-32C of all that (4). Records follow without
gaps. A blob in a file of its own has the same header and one record.

A segment is made under another name, flushed, renamed and its folder flushed before anything
is committed to it. Only one segment is written at a time: the next is begun when everything
in the one before is on disk.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from crc32c import crc32c

from dolmen.errors import BadVolume, Corrupt
from dolmen.stores.volume.disk import Buffer
from dolmen.stores.volume.folder import PART, SEGMENT, Folder

SEGMENT_HEADER = 64
_MAGIC = b"dlmnseg\n"
_VERSION = 1
_HEADER = struct.Struct("<8sII16s28x")
_CRC = struct.Struct("<I")


def encode_header(number: int, owner: bytes) -> bytes:
    """The header of a new segment."""
    header = _HEADER.pack(_MAGIC, _VERSION, number, owner)
    return header + _CRC.pack(crc32c(header))


def decode_header(header: bytes) -> tuple[int, bytes]:
    """Number and owner of a segment; raises `Corrupt` when this is no header of one.

    Raises `BadVolume` for one of a newer version.
    """
    if len(header) < SEGMENT_HEADER:
        raise Corrupt("a segment's header is cut short")
    magic, version, number, owner = _HEADER.unpack_from(header)
    if magic != _MAGIC or crc32c(header[: _HEADER.size]) != _CRC.unpack_from(header, 60)[0]:
        raise Corrupt("a segment's header fails its checksum")
    if version != _VERSION:
        raise BadVolume(
            f"a segment is of version {version}, and this dolmen reads version {_VERSION}: "
            "use the newer dolmen that wrote it"
        )
    return number, owner


@dataclass(slots=True)
class Active:
    """The segment that is being written; everything in it up to `end` is on disk."""

    folder: Folder
    number: int
    owner: bytes
    fd: int
    end: int
    identity: tuple[int, int] | None

    def append(self, parts: Sequence[Buffer], size: int) -> None:
        """Write records at the end; returns when they are on disk.

        Raises `OSError`. A write that failed for want of room may be followed by `cut_off`;
        after any other failure nobody knows what is on disk.
        """
        disk = self.folder.disk
        disk.write(self.fd, parts, self.end, sync=True)
        self.check_linked()
        self.end += size

    def cut_off(self) -> None:
        """Undo an `append` that failed, durably, so it can't come back."""
        self.folder.disk.truncate(self.fd, self.end)
        self.folder.disk.flush(self.fd)

    def check_linked(self) -> None:
        """Raise `OSError` unless the file still lies where the next opening will look for it."""
        path = self.folder.file(self.number, SEGMENT)
        if self.folder.disk.identity(path) != self.identity:
            raise FileNotFoundError(
                f"{path} was removed, moved or replaced while the volume was open"
            )


def create(folder: Folder, number: int) -> Active:
    """Make a new segment, durably, under its name."""
    disk = folder.disk
    owner = secrets.token_bytes(16)
    folder.make_group(number)
    part = folder.file(number, PART)
    disk.unlink(part)
    fd = disk.create(part)
    try:
        disk.write(fd, [encode_header(number, owner)], 0)
        disk.flush(fd)
        disk.rename(part, folder.file(number, SEGMENT))
        folder.flush_group(number)
    except BaseException:
        disk.close(fd)
        raise
    return Active(folder, number, owner, fd, SEGMENT_HEADER, disk.identity(fd))


def reopen(folder: Folder, number: int, owner: bytes, end: int) -> Active:
    """Go on in a segment that ends there; what lies behind is cut off, durably."""
    disk = folder.disk
    fd = disk.open(folder.file(number, SEGMENT), write=True)
    active = Active(folder, number, owner, fd, end, disk.identity(fd))
    try:
        if disk.size(fd) != end:
            active.cut_off()
    except BaseException:
        disk.close(fd)
        raise
    return active
