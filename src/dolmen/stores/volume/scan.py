"""Reading a segment from one end to the other, telling a torn tail from damage.

A power cut may leave any part of what was written after the last flush: whole
records, parts of them, or nothing. None of that was answered for, so it may be
kept or dropped, but a part must never be taken for a whole. What *was* flushed
and can't be read any more is damage, and must not look as if it had never been.

The two are told apart by `flushed`, which every record carries: a record that
can't be read was flushed exactly if some record behind it says so. Scanning
therefore looks for further records behind one that can't be read, by searching
for a header that fits (magic, owner and CRC-32C).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dolmen.errors import Corrupt
from dolmen.record import (
    BLOCK,
    HEAD_MAX,
    HEADER_SIZE,
    MAGIC,
    Head,
    Kind,
    block_sums,
    decode_head,
    sums_size,
)
from dolmen.stores.volume import revision
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.revision import Base

_log = logging.getLogger("dolmen.volume")
_WINDOW = 4 << 20
_PAGE = 4096


def salvage(disk: Disk, fd: int, length: int, position: int) -> bytes:
    """As `Disk.read`, with zeros for the pages that the disk has lost (EIO)."""
    try:
        return disk.read(fd, length, position)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        if length <= _PAGE:
            return bytes(length)
        _log.error("the disk has lost bytes of a segment behind byte %d: %s", position, error)
    stop = min(position + length, disk.size(fd))
    starts = [position, *range((position // _PAGE + 1) * _PAGE, stop, _PAGE)]
    ends = [*starts[1:], stop]
    return b"".join(
        salvage(disk, fd, end - start, start) for start, end in zip(starts, ends, strict=True)
    )


class Found(NamedTuple):
    """A record: its head, its offset, and whether its data fits its checksums.

    `sound` is None where the data was not looked at. A revision has its `base`.
    """

    head: Head
    offset: int
    sound: bool | None
    in_extent: bool
    base: Base | None = None

    @property
    def start(self) -> int:
        """Where it begins, the extent around it included."""
        return self.offset - HEADER_SIZE if self.in_extent else self.offset

    @property
    def stop(self) -> int:
        """Where the record ends."""
        return self.offset + self.head.size


class Gap(NamedTuple):
    """Bytes from `start` to `stop` in which no record can be made out."""

    start: int
    stop: int
    last: bool
    """No record follows."""


class Scanner:
    """Reads one open segment. `verify(head)` says whose data to read and check.

    One that is `sealed` can be read although the disk has lost some of it (EIO): what lay there
    can't be made out. Of another nobody could tell then whether it was torn.
    """

    def __init__(
        self,
        disk: Disk,
        fd: int,
        owner: bytes,
        verify: Callable[[Head], bool],
        *,
        sealed: bool = False,
    ) -> None:
        self._disk = disk
        self._sealed = sealed
        self._fd = fd
        self._owner = owner
        self._verify = verify
        self.size = disk.size(fd)
        self._window = b""
        self._base = 0

    def records(self, start: int) -> Iterator[Found | Gap]:
        """Everything from `start` (a record's beginning) to the end, in order."""
        position = start
        while position < self.size:
            head = self._head(position)
            if head is None:
                following = self._search(position + 1)
                yield Gap(position, following or self.size, last=following is None)
                if following is None:
                    return
                position = following
            elif head.kind == Kind.EXTENT:
                inner = self._head(position + HEADER_SIZE)
                # An extent whose record never came is nothing: it is stepped over.
                if inner is not None and inner.kind != Kind.EXTENT and inner.size <= head.length:
                    yield self._found(inner, position + HEADER_SIZE, in_extent=True)
                position += HEADER_SIZE + head.length
            else:
                yield self._found(head, position, in_extent=False)
                position += head.size

    def _found(self, head: Head, offset: int, *, in_extent: bool) -> Found:
        if offset + head.size > self.size:
            return Found(head, offset, sound=False, in_extent=in_extent)
        sound = self._sound(head, offset) if self._verify(head) else None
        base = None
        if head.kind == Kind.TOUCH and sound is not False:
            base = revision.decode(self._read(offset + head.data_offset, revision.SIZE))
        return Found(head, offset, sound, in_extent, base)

    def _head(self, position: int) -> Head | None:
        view = self._read(position, HEAD_MAX)
        try:
            head = decode_head(view)
        except Corrupt:
            return None
        return head if head.owner == self._owner else None

    def _sound(self, head: Head, offset: int) -> bool:
        data = offset + head.data_offset
        sums = data + head.length
        for at in range(0, head.length, _WINDOW):
            length = min(_WINDOW, head.length - at)
            piece = self._read(data + at, length)
            wanted = self._from_disk(sums_size(length), sums + at // BLOCK * 4)
            if len(piece) < length or block_sums(piece) != wanted:
                return False
        return True

    def _search(self, position: int) -> int | None:
        while position < self.size:
            view = self._read(position, _WINDOW)
            at = bytes(view).find(MAGIC)
            if at < 0:
                position += max(len(view) - len(MAGIC) + 1, 1)
                continue
            position += at
            if self._head(position) is not None:
                return position
            position += 1
        return None

    def _read(self, position: int, length: int) -> memoryview:
        """Up to `length` bytes at `position`, by way of a window."""
        start = position - self._base
        reaches_end = self._base + len(self._window) >= self.size
        if start < 0 or (start + length > len(self._window) and not reaches_end):
            self._window = self._from_disk(max(length, _WINDOW), position)
            self._base, start = position, 0
        return memoryview(self._window)[start : start + length]

    def _from_disk(self, length: int, position: int) -> bytes:
        if self._sealed:
            return salvage(self._disk, self._fd, length, position)
        return self._disk.read(self._fd, length, position)
