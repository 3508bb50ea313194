"""A segment that is compacted, as it is read: its records, and their data piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice

from dolmen.record import Head, Kind, block_sums
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.move import Move
from dolmen.stores.volume.scan import Found, Gap, Scanner
from dolmen.stores.volume.segment import SEGMENT_HEADER

_log = logging.getLogger("dolmen.volume")
_HEADS = 256
"""Records in a page."""
_PIECE = 1 << 20


class Source:
    """One open segment."""

    def __init__(self, disk: Disk, fd: int, number: int, owner: bytes) -> None:
        self.number = number
        self._disk, self._fd, self._owner = disk, fd, owner

    def pages(self) -> Iterator[list[Found]]:
        """All its records, some at a time. Their data is not looked at."""
        scanner = Scanner(self._disk, self._fd, self._owner, verify=lambda _: False)
        records = self._records(scanner.records(SEGMENT_HEADER))
        while page := list(islice(records, _HEADS)):
            yield page

    def _records(self, found: Iterable[Found | Gap]) -> Iterator[Found]:
        for item in found:
            if not isinstance(item, Gap):
                yield item

    def read(self, move: Move, head: Head) -> None:
        """Give a move the data of its record; where that is damaged it is not sound."""
        if head.kind not in (Kind.BLOB, Kind.MANIFEST):
            return
        found = b"".join(self.pieces(move.offset + head.data_offset, head.size - head.data_offset))
        move.data, move.sums = memoryview(found)[: head.length], found[head.length :]
        move.sound = block_sums(move.data) == move.sums

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """These bytes, as far as they can be read."""
        for at in range(0, length, _PIECE):
            try:
                yield self._disk.read(self._fd, min(_PIECE, length - at), start + at)
            except OSError as error:
                _log.error("segment %08x can't be read: %s", self.number, error)
                return
