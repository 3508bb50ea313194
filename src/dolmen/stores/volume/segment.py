r"""Segments: append-only files of records.

A segment begins with a header of 64 bytes (little-endian): magic `dlmnseg\n` (8),
version (4), its number (4), its owner (16, random, borne by every record in it),
milliseconds since 1970 at its creation (8), its floor (8: no record in it has a lower
sequence; 0 where that is not known), zeros (12), CRC-32C of all that (4).
Records follow each other without gaps.

A record that is streamed while others are appended gets an *extent*: a header of
kind EXTENT whose length is the room behind it, and in that room, once it is whole,
an ordinary record. The extent's header is never written again, so whoever scans
can always step over it; an extent whose record never came is just skipped.
"""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from typing import NamedTuple

from crc32c import crc32c

from dolmen.errors import BadVolume, Corrupt
from dolmen.record import HEADER_SIZE, Kind, encode_head
from dolmen.stamps import wall_ms
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.recent import Reach, Recent

SEGMENT_HEADER = 64
_MAGIC = b"dlmnseg\n"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQQ12x")
_CRC = struct.Struct("<I")
_NO_CHECKSUM = bytes(16)


class Header(NamedTuple):
    """What a segment says of itself."""

    number: int
    owner: bytes
    floor: int


def encode_header(number: int, owner: bytes, floor: int) -> bytes:
    """The header of a new segment."""
    header = _HEADER.pack(_MAGIC, _VERSION, number, owner, wall_ms(), floor)
    return header + _CRC.pack(crc32c(header))


def decode_header(header: bytes) -> Header:
    """The header of a segment; raises `Corrupt` when this is none.

    Raises `BadVolume` for one of a newer version.
    """
    if len(header) < SEGMENT_HEADER:
        raise Corrupt("a segment's header is cut short")
    magic, version, number, owner, _, floor = _HEADER.unpack_from(header)
    if magic != _MAGIC or crc32c(header[: _HEADER.size]) != _CRC.unpack_from(header, 60)[0]:
        raise Corrupt("a segment's header fails its checksum")
    if version != _VERSION:
        raise BadVolume(
            f"a segment is of version {version}, and this dolmen reads version {_VERSION}: "
            "use the newer dolmen that wrote it"
        )
    return Header(number, owner, floor)


def extent_head(owner: bytes, room: int) -> bytes:
    """The header that keeps `room` bytes behind it for one record."""
    return encode_head(Kind.EXTENT, b"", b"", room, 0, _NO_CHECKSUM, owner=owner)


class Segment:
    """A segment this process is writing. Its file stays locked until `close`.

    `end` is where the next record goes, `flushed` how much is known to be on disk.
    Room is handed out under a lock, so extents may be taken from any thread;
    records are appended by the committing thread alone.
    """

    def __init__(self, disk: Disk, number: int, owner: bytes, fd: int, path: str) -> None:
        self.number, self.owner, self.fd, self.path = number, owner, fd, path
        self.end = SEGMENT_HEADER
        self.flushed = SEGMENT_HEADER
        self.retired = False
        self._disk = disk
        self._lock = threading.Lock()
        self._extents: set[int] = set()
        self._unflushed: set[int] = set()

    def append(self, size: int) -> tuple[int, bool]:
        """Take the next `size` bytes; returns their offset, and whether all before is on disk.

        It is not while an extent is being filled, or its header has not been flushed.
        """
        with self._lock:
            offset = self.end
            self.end += size
            return offset, not self._extents and not self._unflushed

    def flush(self) -> None:
        """Return when everything written so far is on disk."""
        with self._lock:
            end, heads = self.end, self._unflushed
            self._unflushed = set()
        try:
            self._disk.flush(self.fd)
        except BaseException:
            self._unflushed |= heads
            raise
        self.flushed = end

    def give_back(self, offset: int, size: int) -> None:
        """Undo the last `append` after a write that failed for want of room.

        Where room was handed out behind it meanwhile, it becomes an empty extent.
        """
        with self._lock:
            if self.end == offset + size:
                self._disk.truncate(self.fd, offset)
                self.end = offset
            else:
                cover = extent_head(self.owner, size - HEADER_SIZE)
                self._disk.write(self.fd, [cover], offset)

    def retire(self) -> None:
        """Nothing new is begun here from now on."""
        with self._lock:
            self.retired = True

    def take_extent(self, size: int) -> int | None:
        """Room for a record of `size` bytes; where the record begins, or None when retired."""
        with self._lock:
            if self.retired:
                return None
            start = self.end
            # Room first: when the disk is full nothing has changed.
            self._disk.reserve(self.fd, start, HEADER_SIZE + size)
            self._disk.write(self.fd, [extent_head(self.owner, size)], start)
            self._extents.add(start)
            self._unflushed.add(start)
            self.end = start + HEADER_SIZE + size
        return start + HEADER_SIZE

    def release_extent(self, record: int) -> None:
        """The record in an extent is visible, or will never come."""
        with self._lock:
            self._extents.discard(record - HEADER_SIZE)

    def reach(self) -> Reach:
        """How far what was written can be seen once the commit under way is done."""
        with self._lock:
            settled = min(self._extents, default=self.end)
            return Reach(settled, self.end, self.retired and settled == self.end)

    def doubtful_reach(self) -> Reach:
        """The same after a flush that failed: only what was flushed before is settled."""
        reach = self.reach()
        return Reach(min(reach.settled, self.flushed), reach.end, finished=False)

    def discard(self) -> None:
        """Remove the file, to which nothing has been committed."""
        with suppress(OSError):  # else the next opening removes it
            self._disk.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Close the file and let go of its lock."""
        self._disk.close(self.fd)


def create(disk: Disk, layout: Layout, recent: Recent) -> Segment:
    """A new segment under its temporary name, locked; `publish` gives it its own."""
    while True:
        number, floor = recent.take_number()
        path = layout.unfinished(number)
        segment = Segment(disk, number, os.urandom(16), disk.create(path), path)
        try:
            disk.lock(segment.fd, wait=True)
            if disk.linked(segment.fd):
                disk.write(segment.fd, [encode_header(number, segment.owner, floor)], 0)
                return segment
        except BaseException:
            segment.discard()
            raise
        segment.close()  # somebody's recovery took it for a leftover before it was locked


def publish(disk: Disk, layout: Layout, segment: Segment) -> None:
    """Flush a segment and give it its name, durably."""
    disk.flush(segment.fd)
    path = layout.active_segment(segment.number)
    disk.rename(segment.path, path)
    segment.path = path
    disk.flush_directory(layout.active)
