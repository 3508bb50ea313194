"""Places for blobs that are streamed: an extent, or a segment of its own.

A blob up to the chunk size goes to an extent in the active segment, a larger one
to a segment that nobody else writes to. Either way the data is written as it
comes, and nothing of it can be seen before the record's head stands in front of
it, which the commit writes.
"""

from __future__ import annotations

from blake3 import blake3

from dolmen.errors import BadContent
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Piece
from dolmen.record import HEADER_SIZE, BlockSums
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.segment import Segment

_WRITE_BEHIND = 4 << 20


class Place:
    """Where one blob of `length` bytes is being streamed to.

    `take` may be called from any thread, one call at a time.
    """

    def __init__(
        self, disk: Disk, segment: Segment, offset: int, head: int, length: int, *, alone: bool
    ) -> None:
        self.segment, self.offset, self.alone = segment, offset, alone
        self.checksum = b""
        self.gone = False
        """The record stands in it, or it was abandoned."""
        self._disk = disk
        self._data = offset + HEADER_SIZE + head
        self._length = length
        self._written = 0
        self._behind = 0
        self._hasher = blake3()
        self._sums = BlockSums()

    def take(self, piece: Piece) -> None:
        """Write the next piece of the data, and the block checksums behind the last one.

        Raises `BadContent` when it is too much.
        """
        if self._written + len(piece) > self._length:
            raise BadContent(f"more than the {self._length} bytes announced came")
        self._hasher.update(piece)
        self._sums.update(piece)
        at = self._data + self._written
        self._written += len(piece)
        parts = [piece]
        whole = self._written == self._length
        if whole:
            parts.append(self._sums.digest())
            self.checksum = self._hasher.digest(CHECKSUM_SIZE)
        self._disk.write(self.segment.fd, parts, at)
        if whole or self._written - self._behind >= _WRITE_BEHIND:
            self._disk.write_behind(
                self.segment.fd, self._data + self._behind, self._written - self._behind
            )
            self._behind = self._written

    def check_whole(self) -> None:
        """Raise `BadContent` unless all of the data has come."""
        if self._written != self._length:
            raise BadContent(f"{self._length} bytes were announced, but only {self._written} came")

    def abandon(self) -> None:
        """The record will never come, unless it stands already."""
        if self.gone:
            return
        self.gone = True
        if self.alone:
            self.segment.discard()
        else:
            self.segment.release_extent(self.offset)
