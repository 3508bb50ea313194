"""Compaction: segments of which little stands are written again, and the old files go.

The index counts, with every change, how many bytes of each segment stand. The counts only
say where to look. Of a segment below the threshold every head is read and compared with
what stands: first to add up what has to be carried on, then to carry it (see `move`) in
small batches to a segment of the compactor's own. Each batch is flushed before it is seen.
Then recent is merged and the index settled, so that neither file nor index refers to the
old segment any more, and only then it is unlinked, and the folder flushed before anything else.
Readers that have the file open go on reading it; whoever finds it gone looks up once more.
A crash in between leaves some records twice, of which the later ones count.

**What is carried beyond the blobs.** A record is needed as long as one that it overrules
lies in some segment, or a reindex would bring that back. Tombstones, and the last
revisions of blobs, stand in the index, so they are always carried. A *removal* leaves nothing
in the index. It is carried unless no other segment can hold a record of a lower sequence:
every segment says in its header below which sequence it has none. (So while an old
segment is full of what stands, the removals of its time stay, at some 150 bytes each.)

Such records count as nothing in the index, so a segment full of them is looked at, found
not to be worth it, and left alone for a day. What is written again is at most the threshold's
share of what goes, so compaction always comes to an end.

One process of a volume compacts at a time (`compaction.lock`). `Compactor.steps` does it in
steps of a few milliseconds; whoever takes them may wait as long as it likes between two of
them, and stop after any. Who does it at once holds a lock that says so (`compaction-at-once.lock`);
who does it little by little looks at it now and then (`wanted_at_once`), and stops.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator

from dolmen.errors import Busy, Corrupt, Full
from dolmen.record import Head, Kind
from dolmen.stores.old_verdict import Action
from dolmen.stores.volume.carry import CLOCK, Carrier, Step
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.layout import Layout, settle_names
from dolmen.stores.volume.merge import Merge
from dolmen.stores.volume.move import Move
from dolmen.stores.volume.recent import Recent
from dolmen.stores.volume.scan import Found
from dolmen.stores.volume.sealed import Sealed
from dolmen.stores.volume.segment import SEGMENT_HEADER
from dolmen.stores.volume.source import Source, open_source

_log = logging.getLogger("dolmen.volume")
THRESHOLD = 0.5
"""A segment of which a smaller share has to be kept is written again."""
_LOOK_AGAIN = 24 * 3600.0
_COMPACTION, _AT_ONCE = "compaction", "compaction-at-once"
"""Names of locks."""


class Compactor:
    """Compacts for one process that has the volume open. One thread at a time."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        index: Index,
        recent: Recent,
        merge: Merge,
        recover: Callable[[], object],
        *,
        now: Callable[[], float] = time.time,
        segment_size: int | None = None,
    ) -> None:
        self._disk, self._layout, self._index = disk, layout, index
        self._merge, self._now = merge, now
        self._carrier = Carrier(
            disk, layout, index, recent, recover, now=now, segment_size=segment_size
        )
        self._sealed = Sealed(disk, layout)
        self._looked: dict[int, float] = {}
        """When segments were found not to be worth it, or could not be read."""

    def reclaimable(self) -> int:
        """Bytes of the sealed segments in which no blob and no tombstone stands."""
        usage = self._index.usage()
        return sum(
            max(size - usage.get(number, 0), 0) for number, size in self._sealed.sizes().items()
        )

    def candidates(self) -> list[tuple[int, int]]:
        """Number and length of segments that seem worth it, those with least in them first."""
        usage, again = self._index.usage(), self._now() - _LOOK_AGAIN
        found = [
            (usage.get(number, 0) / size, number, size)
            for number, size in self._sealed.sizes().items()
            if usage.get(number, 0) < THRESHOLD * size and self._looked.get(number, again) <= again
        ]
        return [(number, size) for _, number, size in sorted(found)]

    def wanted_at_once(self) -> bool:
        """Whether another process compacts at once, or waits for its turn to."""
        lock = self._disk.open_lock(self._layout.lock(_AT_ONCE))
        try:
            return not self._disk.lock(lock, shared=True)
        finally:
            self._disk.close(lock)

    def steps(self, *, at_once: bool = False) -> Generator[Step]:
        """Compact every segment that is worth it, step by step.

        While another process compacts it raises `Busy`, or with `at_once` takes steps in
        which nothing is done until that one has left off. Raises `Full` when there is no room to
        write, once whatever can go without writing is gone; `DolmenError` and `OSError` where
        the disk or the index refuse. Nothing is lost then, nor when it is given up. A segment that
        can't be read is told in the log, and the others are compacted.
        """
        names = (_AT_ONCE, _COMPACTION) if at_once else (_COMPACTION,)
        locks = [self._disk.open_lock(self._layout.lock(name)) for name in names]
        try:
            for lock in locks:
                while not self._disk.lock(lock):
                    if not at_once:
                        raise Busy(f"another process is compacting {self._layout.root}")
                    yield Step()
            self._merge.merge()  # what is not in the index yet is not counted
            full: Full | None = None
            found = self.candidates()
            # What lies here, and what does not, must do so after a power cut as well.
            settle_names(self._disk, self._layout)
            for number, size in found:
                try:
                    yield from self._compact(number, size)
                except Full as error:
                    full = error  # a later one may have nothing to carry
                except Corrupt as error:
                    _log.error("a segment can't be compacted: %s", error)
                    self._looked[number] = self._now()
            if full is not None:
                raise full
        finally:
            try:
                self._carrier.retire()
            finally:
                for lock in locks:
                    self._disk.close(lock)

    def _compact(self, number: int, size: int) -> Iterator[Step]:
        path = self._layout.sealed_segment(number)
        with open_source(self._disk, path, number) as source:
            floor = self._sealed.floor_without(number)
            needed = 0
            for moves, read in self._needed(source, floor):
                needed += sum(head.size for _, head in moves)
                yield Step(moved=read)
            if needed > THRESHOLD * size:
                self._looked[number] = self._now()
                return
            self._check_room(needed)
            for moves, _ in self._needed(source, floor):
                yield from self._carrier.carry(source, moves)
        if self._drop(number, path):
            yield Step(dropped=size)

    def _check_room(self, needed: int) -> None:
        if needed and self._disk.space(self._layout.root)[0] < needed:
            raise Full(
                f"the disk under {self._layout.root} is too full to compact: {needed:,} bytes must "
                "be free; delete something more or make room"
            )

    def _drop(self, number: int, path: str) -> bool:
        """Let the file go, if nothing refers to it any more.

        Something does when it was touched while it was streamed, or when the head of its record is
        damaged: such a blob is not found here, and can still be read.
        """
        self._merge.merge()
        self._index.settle()
        if self._index.usage().get(number):
            _log.warning("segment %08x is kept: something stands there that was not moved", number)
            self._looked[number] = self._now()
            return False
        self._disk.unlink(path)
        # Removals of what lay here may be dropped from now on.
        self._disk.flush_directory(self._layout.sealed_folder(number))
        with self._index.slice() as change:
            change.forget_segment(number)
        return True

    def _needed(self, source: Source, floor: int) -> Iterator[tuple[list[tuple[Move, Head]], int]]:
        """The moves of what has to be carried, with its heads, and the bytes passed over."""
        at = SEGMENT_HEADER
        for page in source.pages():
            moves = [_move(found, source.number) for found in page]
            standing = self._carrier.standing([move.key for move in moves])
            needed: list[tuple[Move, Head]] = []
            for found, move in zip(page, moves, strict=True):
                if move.kind == Kind.REMOVAL and found.head.sequence <= floor:
                    continue
                move.standing = standing.get(move.key)
                if move.judge(CLOCK, 0.0).action is not Action.KEEP:
                    # Judged once more, when its name is claimed.
                    needed.append((_move(found, source.number), found.head))
            yield needed, page[-1].stop - at
            at = page[-1].stop


def _move(found: Found, number: int) -> Move:
    head = found.head
    return Move(
        head.name.decode(),
        number,
        found.offset,
        kind=head.kind,
        sequence=head.sequence,
        stamp=head.stamp,
    )
