"""Segments: append-only files of records. The order of the log is (number, offset).

The first record is a mark that says so. All have the owner of their segment, 16 random bytes, so
an old block of a reused file is never believed. A blob in a file of its own lies behind such a
mark as well. The bytes are in `docs/disk-format.md`.

A segment is made under another name, flushed, renamed and its folder flushed before anything
is committed to it. Only one segment is written at a time: the next is begun when everything
in the one before is on disk.

A `Scanner` reads one from end to end, head by head. What can't be read is a gap: it goes on at
the next head that fits (magic, owner and CRC-32C). Whether a gap is damage or the torn tail of a
power cut is told by `flushed`, which every record carries: what can't be read had been on disk
exactly if a later record says so.

Read first: `dolmen.record`, `folder`.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dolmen.errors import Corrupt
from dolmen.record import (
    BLOCK,
    HEAD_MAX,
    MAGIC,
    NOBODY,
    Head,
    Kind,
    block_sums,
    decode_head,
    encode_head,
    sums_size,
)
from dolmen.store import NO_CHECKSUM
from dolmen.stores.volume.disk import Buffer, Disk
from dolmen.stores.volume.entry import TOUCH_SIZE
from dolmen.stores.volume.folder import PART, SEGMENT, Folder

_WINDOW = 1 << 20
_PAGE = 4096


def opening(number: int, owner: bytes) -> bytes:
    """The record that a new file begins with."""
    return encode_head(Kind.MARK, b"segment", b"", 0, number, NO_CHECKSUM, owner=owner)


BEGIN = len(opening(0, NOBODY))
"""Where the first record of the log in a segment lies, and that of a large blob in its file."""


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
    part = folder.file(number, PART)
    fd = disk.create(part)
    try:
        disk.write(fd, [opening(number, owner)], 0)
        disk.flush(fd)
        disk.rename(part, folder.file(number, SEGMENT))
        disk.flush_directory(folder.segments)
    except BaseException:
        disk.close(fd)
        disk.unlink(part)
        disk.unlink(folder.file(number, SEGMENT))  # or the one that goes on were not the last
        raise
    return Active(folder, number, owner, fd, BEGIN, disk.identity(fd))


def reopen(folder: Folder, number: int, end: int) -> Active | None:
    """Go on in a segment that ends there; what lies behind is cut off, durably.

    None where no record can be made out, so that its owner is not known.
    """
    disk = folder.disk
    fd = disk.open(folder.file(number, SEGMENT), write=True)
    try:
        if (owner := Scanner(disk, fd).owner) is None:
            disk.close(fd)
            return None
        active = Active(folder, number, owner, fd, end, disk.identity(fd))
        if disk.size(fd) != end:
            active.cut_off()
    except BaseException:
        disk.close(fd)
        raise
    return active


class Found(NamedTuple):
    """A record: its head and its offset; of a touch its data, which is right."""

    head: Head
    offset: int
    touch: bytes

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.offset + self.head.size


class Gap(NamedTuple):
    """Bytes from `start` to `stop` in which no record can be made out."""

    start: int
    stop: int


class Scanner:
    """One open file of records, `size` bytes of it. Blocks; for a thread.

    `owner` is None where no record at all can be made out.
    """

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk, self._fd = disk, fd
        self.size = disk.size(fd)
        self._window, self._base = memoryview(b""), 0
        self.owner: bytes | None = None
        first = self._search(0)
        if first is not None:
            self.owner = decode_head(self._view(first, HEAD_MAX)).owner
        self.begins_well = first == 0

    def records(self, start: int) -> Iterator[Found | Gap]:
        """Everything from `start` on."""
        position = max(start, BEGIN)
        while position < self.size:
            found = self._record(position)
            if found is not None:
                yield found
                position = found.stop
            else:
                following = self._search(position + 1)
                stop = self.size if following is None else following
                yield Gap(position, stop)
                position = stop

    def is_sound(self, found: Found) -> bool:
        """Whether the data of a record fits its checksums."""
        data = found.offset + found.head.data_offset
        try:
            for _ in checked_pieces(self._disk, self._fd, data, found.head.length):
                pass
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def _record(self, position: int) -> Found | None:
        head = self._head(position)
        if head is None or position + head.size > self.size:
            return None
        if head.kind != Kind.TOUCH:
            return Found(head, position, b"")
        at = head.data_offset
        whole = bytes(self._view(position, head.size))
        data, sums = whole[at : at + head.length], whole[at + head.length :]
        if head.length != TOUCH_SIZE or block_sums(data) != sums:
            return None
        return Found(head, position, data)

    def _head(self, position: int) -> Head | None:
        try:
            head = decode_head(self._view(position, HEAD_MAX))
        except Corrupt:
            return None
        return head if self.owner in (None, head.owner) else None

    def _search(self, position: int) -> int | None:
        while position < self.size:
            view = bytes(self._view(position, _WINDOW))
            at = view.find(MAGIC)
            if at < 0:
                position += max(len(view) - len(MAGIC) + 1, 1)
                continue
            position += at
            if self._head(position) is not None:
                return position
            position += 1
        return None

    def _view(self, position: int, length: int) -> memoryview:
        """Up to `length` bytes at `position`, by way of a window."""
        length = min(length, self.size - position)
        start = position - self._base
        if start < 0 or start + length > len(self._window):
            self._window = memoryview(self._from_disk(max(length, _WINDOW), position))
            self._base, start = position, 0
        return self._window[start : start + length]

    def _from_disk(self, length: int, position: int) -> bytes | memoryview:
        """As `Disk.read`, with zeros for pages that the disk has lost (EIO)."""
        try:
            return self._disk.read(self._fd, length, position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if length <= _PAGE:
                return bytes(length)
        stop = min(position + length, self.size)
        borders = range((position // _PAGE + 1) * _PAGE, stop, _PAGE)
        starts, ends = (position, *borders), (*borders, stop)
        return b"".join(
            self._from_disk(end - start, start) for start, end in zip(starts, ends, strict=True)
        )


def checked_pieces(disk: Disk, fd: int, at: int, length: int) -> Iterator[memoryview]:
    """The data of a record that begins at `at`, piece by piece, each in the same memory.

    Raises `OSError` (EIO) where it does not fit its checksums. Blocks; for a thread.
    """
    room = memoryview(bytearray(min(_WINDOW, length)))
    for start in range(0, length, _WINDOW):
        piece = room[: min(_WINDOW, length - start)]
        got = disk.read_into(fd, piece, at + start)
        sums = disk.read(fd, sums_size(len(piece)), at + length + start // BLOCK * 4)
        if got < len(piece) or block_sums(piece) != sums:
            raise damage()
        yield piece


def damage() -> OSError:
    """What fails its checksum is as what the disk can't read."""
    return OSError(errno.EIO, "a checksum does not fit")
