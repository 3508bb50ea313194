"""Reading a segment from one end to the other, head by head.

What can't be read is a gap: the scan goes on at the next head that fits (magic, owner and
CRC-32C). Whether a gap is damage or the torn tail of a power cut is told by `flushed`, which
every record carries: what can't be read had been on disk exactly if a later record says so.

Read first: `dolmen.record`, `segment`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from dolmen.errors import Corrupt
from dolmen.record import (
    BLOCK,
    HEAD_MAX,
    MAGIC,
    Head,
    Kind,
    block_sums,
    decode_head,
    sums_size,
)
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import TOUCH_SIZE
from dolmen.stores.volume.segment import SEGMENT_HEADER, decode_header

_WINDOW = 1 << 20
_PAGE = 4096


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

    `owner` is None where neither header nor any record can be made out.
    """

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk, self._fd = disk, fd
        self.size = disk.size(fd)
        self._window, self._base = b"", 0
        self.header_is_sound = True
        self.owner: bytes | None = None
        try:
            self.owner = decode_header(self._from_disk(SEGMENT_HEADER, 0))[1]
        except Corrupt:
            self.header_is_sound = False
            first = self._search(SEGMENT_HEADER)
            if first is not None:
                self.owner = decode_head(self._view(first, HEAD_MAX)).owner

    def records(self, start: int) -> Iterator[Found | Gap]:
        """Everything from `start` on."""
        position = max(start, SEGMENT_HEADER)
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
        length = found.head.length
        data = found.offset + found.head.data_offset
        for at in range(0, length, _WINDOW):
            piece = self._from_disk(min(_WINDOW, length - at), data + at)
            sums = self._from_disk(sums_size(len(piece)), data + length + at // BLOCK * 4)
            if block_sums(piece) != sums:
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
            self._window = self._from_disk(max(length, _WINDOW), position)
            self._base, start = position, 0
        return memoryview(self._window)[start : start + length]

    def _from_disk(self, length: int, position: int) -> bytes:
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
