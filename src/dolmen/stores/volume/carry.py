"""Carrying: what a segment still has to keep is written again, flushed and shown, in batches.

It goes to a segment of the carrier's own, which is made when there is something to write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dolmen.errors import Unavailable
from dolmen.record import Head, Kind
from dolmen.stamps import Clock
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.move import Move
from dolmen.stores.volume.recent import Recent
from dolmen.stores.volume.source import Source
from dolmen.stores.volume.write import Write

CLOCK = Clock()
"""Never asked: a move keeps its stamp."""
_BATCH = 512 << 10
"""Bytes written in one step."""
_LARGE = 8 << 20
"""A longer record is streamed from place to place."""
_LOOKS = 5_000
"""How often a claimed name is looked at, a millisecond apart, before compaction gives up."""
_CLAIMANT_DIED = 200


class Step(NamedTuple):
    """What one step did. Sizes in bytes."""

    moved: int = 0
    """Read and written."""
    dropped: int = 0
    """The length of the file that went."""
    carried: int = 0
    """Written again."""


class Carrier:
    """Carries for one compactor. One thread at a time."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        index: Index,
        recent: Recent,
        recover: Callable[[], object],
        *,
        now: Callable[[], float] = time.time,
        segment_size: int | None = None,
    ) -> None:
        self._disk, self._layout, self._index, self._recent = disk, layout, index, recent
        self._recover, self._now, self._segment_size = recover, now, segment_size
        self._log: Log | None = None

    def retire(self) -> None:
        """Finish the segment that was carried to; it is sealed with the next merge."""
        if self._log is not None:
            log, self._log = self._log, None
            log.close()

    def standing(self, keys: list[bytes]) -> dict[bytes, Entry]:
        """What stands under these names. Recent first: what leaves it is in the index by then."""
        values = self._recent.get_many(keys)
        values.update(self._index.get_many([key for key in keys if key not in values]))
        entries = ((key, unpack(value)) for key, value in values.items())
        return {key: entry for key, entry in entries if entry.kind != Kind.REMOVAL}

    def carry(self, source: Source, moves: list[tuple[Move, Head]]) -> Iterator[Step]:
        """Write again what has to be, in batches."""
        batch: list[Move] = []
        size = 0
        for move, head in moves:
            if head.size > _LARGE:
                self._stream(source, move)
                yield Step(moved=2 * head.size, carried=head.size)
                continue
            source.read(move, head)
            batch.append(move)
            size += head.size
            if size >= _BATCH:
                self._commit(batch)
                yield Step(moved=2 * size, carried=size)
                batch, size = [], 0
        if batch:
            self._commit(batch)
            yield Step(moved=2 * size, carried=size)

    def _stream(self, source: Source, move: Move) -> None:
        """Carry one that is too long to be held in memory, by way of a place of its own."""
        standing = self.standing([move.key]).get(move.key)
        if standing is None or (standing.segment, standing.offset) != (move.origin, move.offset):
            return
        move.room_for = len(standing.metadata)
        place = self._writer().place(len(move.name) + move.room_for, standing.length, alone=True)
        try:
            start = standing.offset + standing.data_start(move.name.encode())
            for piece in source.pieces(start, standing.length):
                place.take(piece)
            move.sound = place.checksum == standing.checksum
            move.place = place if move.sound else None
            self._commit([move])
        finally:
            place.abandon()

    def _writer(self) -> Log:
        if self._log is None:
            self._log = Log(
                self._disk,
                self._layout,
                self._index,
                self._recent,
                clock=CLOCK,
                now=self._now,
                segment_size=self._segment_size,
            )
            self._log.appender.reserve = 0  # it is for this that puts leave room
        return self._log

    def _commit(self, moves: list[Move]) -> None:
        """Decide, write, flush and show, as every write is; see `commit`."""
        log = self._writer()
        left: Sequence[Write] = moves
        looks = 0
        try:
            while left:
                batch, waiting = log.claim([*left])
                if batch.writes:
                    log.log(batch)
                    log.show(batch)
                elif waiting:
                    looks += 1
                    self._wait_for(waiting[0], looks)
                left = waiting
        except BaseException as error:
            # Names may be claimed: whoever recovers the segment lets them go.
            log.broken = log.broken or f"compaction was broken off: {error!r}"
            raise
        failed = next((move.error for move in moves if move.error is not None), None)
        if failed is not None:
            raise failed
        for move in moves:  # all of a page are in hand until it is through
            move.data = b""

    def _wait_for(self, claimed: Write, looks: int) -> None:
        """Wait a moment for whoever is deciding about a name, who may have died."""
        if looks == _LOOKS:
            raise Unavailable(f"{claimed.name} is being written without an end")
        if looks % _CLAIMANT_DIED == 0:
            self._recover()
        time.sleep(0.001)
