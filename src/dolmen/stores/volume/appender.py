"""The segments one process writes to: the active one, those retired, those of a single blob."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

import lmdb

from dolmen.errors import Full
from dolmen.record import record_size
from dolmen.stores.volume.disk import Buffer, Disk
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.place import Place
from dolmen.stores.volume.recent import Change, Reach, Recent
from dolmen.stores.volume.segment import SEGMENT_HEADER, Segment, create, publish

SEGMENT_SIZE = 1 << 30
"""Where a segment is retired, in bytes; less on a disk under 64 GiB."""


def no_room(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, lmdb.DiskError)


class Appender:
    """Hands out room in segments, writes to it and flushes it.

    `active` takes the records of every batch. Only the thread that logs changes it.
    """

    def __init__(
        self, disk: Disk, layout: Layout, recent: Recent, *, segment_size: int | None
    ) -> None:
        self._disk, self._layout, self._recent = disk, layout, recent
        total = disk.space(layout.root)[1]
        self.segment_size = segment_size or max(min(SEGMENT_SIZE, total // 64), 1 << 20)
        self.reserve = self.segment_size
        self.active = self._new_segment()
        self._retired: list[Segment] = []

    def _new_segment(self) -> Segment:
        segment = create(self._disk, self._layout, self._recent)
        try:
            publish(self._disk, self._layout, segment)
        except BaseException:
            segment.discard()
            raise
        return segment

    def has_room(self, size: int) -> bool:
        """Whether so many bytes can be written without going below the reserve."""
        return self._disk.space(self._layout.root)[0] >= self.reserve + size

    def full(self) -> Full:
        """The error for a put that has no room."""
        return Full(
            f"the disk under {self._layout.root} is full (less than {self.reserve >> 20} MiB "
            "would be left): delete something or add a server; reading goes on"
        )

    def place(self, name_and_metadata: int, length: int, *, alone: bool) -> Place:
        """Room for a blob to be streamed into; raises `Full`. From any thread."""
        size = record_size(0, 0, length) + name_and_metadata
        if not self.has_room(size):
            raise self.full()
        segment, offset = self._own_segment(size) if alone else self._extent(size)
        return Place(self._disk, segment, offset, name_and_metadata, length, alone=alone)

    def _own_segment(self, size: int) -> tuple[Segment, int]:
        segment = create(self._disk, self._layout, self._recent)
        try:
            self._disk.reserve(segment.fd, 0, SEGMENT_HEADER + size)
        except BaseException:
            segment.discard()
            raise
        return segment, segment.append(size)[0]

    def _extent(self, size: int) -> tuple[Segment, int]:
        while True:
            segment = self.active
            offset = segment.take_extent(size)
            if offset is not None:
                return segment, offset

    def append(self, parts: Sequence[Buffer], size: int, *, through: bool) -> tuple[int, bool]:
        """Write to the end of the active segment; returns the offset. Raises `Full`.

        Asked to write `through` it tells whether it did, so that no flush is needed: it
        can't where other bytes before these are not on disk. After `Full` nothing of
        it is there, nor comes back after a crash.
        """
        segment = self.active
        offset, clean = segment.append(size)
        through = through and clean
        try:
            self._disk.write(segment.fd, parts, offset, through=through)
        except OSError as error:
            if not no_room(error):
                raise
            segment.give_back(offset, size)
            self._disk.flush(segment.fd)
            raise self.full() from error
        if through:
            segment.flushed = offset + size
        return offset, through

    def flush(self, segments: Iterable[Segment]) -> None:
        """Return when all that was written to these segments is on disk, their names too."""
        for segment in segments:
            if segment.path == self._layout.unfinished(segment.number):
                publish(self._disk, self._layout, segment)
                segment.retire()
            else:
                segment.flush()

    def roll(self) -> None:
        """Go on in a new segment when the active one is long enough."""
        if self.active.end >= self.segment_size:
            retired, self.active = self.active, self._new_segment()
            retired.retire()
            self._retired.append(retired)

    def let_go(self, change: Change) -> list[Segment]:
        """Say of retired segments that are settled that they are finished.

        Returns them, to be closed once the change is committed.
        """
        finished = [segment for segment in self._retired if segment.reach().finished]
        for segment in finished:
            change.set_segment(segment.number, segment.reach())
            self._retired.remove(segment)
        return finished

    def close(self, *, sound: bool) -> None:
        """Let go of every segment; `sound` says that all of them may count as finished.

        One to which nothing was ever written is removed.
        """
        segments = [*self._retired, self.active]
        if sound:
            with self._recent.change() as change:
                for segment in segments:
                    end = segment.end
                    if end > SEGMENT_HEADER:
                        change.set_segment(segment.number, Reach(end, end, finished=True))
        for segment in segments:
            if sound and segment.end == SEGMENT_HEADER:
                segment.discard()
            else:
                segment.close()
