"""A segment that is compacted, as it is read: its records, and their data piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from dolmen.errors import Corrupt
from dolmen.record import Head, Kind, block_sums
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.move import Move
from dolmen.stores.volume.recovery import owner_of
from dolmen.stores.volume.scan import Found, Gap, Scanner, salvage
from dolmen.stores.volume.segment import SEGMENT_HEADER

_HEADS = 256
"""Records in a page."""
_PIECE = 1 << 20


@contextmanager
def open_source(disk: Disk, path: str, number: int) -> Iterator[Source]:
    """The segment in a file; raises `Corrupt` where it can't be read."""
    fd = disk.open(path)
    try:
        yield Source(disk, fd, number)
    finally:
        disk.close(fd)


class Source:
    """One open segment. Reading it raises `Corrupt` where the disk refuses."""

    def __init__(self, disk: Disk, fd: int, number: int) -> None:
        self.number = number
        self._disk, self._fd = disk, fd
        with self._readable():
            self._owner = owner_of(disk, fd, number)

    def pages(self) -> Iterator[list[Found]]:
        """All its records, some at a time. Their data is not looked at."""
        with self._readable():
            scanner = Scanner(
                self._disk, self._fd, self._owner, verify=lambda _: False, sealed=True
            )
            records = self._records(scanner.records(SEGMENT_HEADER))
            while page := list(islice(records, _HEADS)):
                yield page

    def _records(self, found: Iterable[Found | Gap]) -> Iterator[Found]:
        for item in found:
            if not isinstance(item, Gap):
                yield item
                continue
            for at in range(item.start, item.stop, _PIECE):
                # What the disk can't read may be a removal, which nothing else tells of.
                self._disk.read(self._fd, min(_PIECE, item.stop - at), at)

    def read(self, move: Move, head: Head) -> None:
        """Give a move the data of its record; where that is damaged it is not sound."""
        if head.kind not in (Kind.BLOB, Kind.MANIFEST):
            return
        found = b"".join(self.pieces(move.offset + head.data_offset, head.size - head.data_offset))
        move.data, move.sums = memoryview(found)[: head.length], found[head.length :]
        move.sound = block_sums(move.data) == move.sums

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """These bytes; what the disk has lost of them (EIO) is damaged."""
        for at in range(0, length, _PIECE):
            with self._readable():
                piece = salvage(self._disk, self._fd, min(_PIECE, length - at), start + at)
            yield piece

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Corrupt(f"segment {self.number:08x} can't be read: {error}") from error
