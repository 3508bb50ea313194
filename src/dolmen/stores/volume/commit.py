"""The commit: decide, write, flush once, show, answer.

Writes that arrive while the disk is busy form the next batch. A batch goes
through four steps:

1. *Claim.* In one transaction on recent every name is decided about (conflict,
   unchanged, superseded, or a record to write, with its stamp and sequence) and
   claimed, so no other process decides about it meanwhile. What is refused leaves
   no record, so replaying the segments always gives what was answered.
2. *Log.* The records go to the segment in one write and are flushed.
3. *Show.* In one transaction the entries become visible and the claims go.
4. *Answer.*

Sequences are taken in step 1, under the same lock as the decision, and a name is
claimed by one commit at a time. Hence among the records of a name the one with
the highest sequence is always the last decided, and also flushed last: that is
what every scan and `reindex` go by.

When a write fails for want of room it is taken back, and answered `Full`. When
anything else in step 2 fails, nobody can say what is on disk: the callers get
`OutcomeUnknown`, the volume refuses writes from then on, and nothing is tried
again on that file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import lmdb

from dolmen.errors import DolmenError, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.stores.old_verdict import Action
from dolmen.stores.volume.appender import Appender, no_room
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.place import Place
from dolmen.stores.volume.recent import Change, Recent
from dolmen.stores.volume.segment import Segment
from dolmen.stores.volume.write import Write

LOOKS = 30_000
"""How often a write looks whether another process is through with its name before it gives up."""


@dataclass(slots=True)
class Batch:
    """Writes that were decided and claimed, with their records ready for the disk."""

    segment: Segment
    writes: list[Write] = field(default_factory=list)
    parts: list[bytes | memoryview] = field(default_factory=list)
    size: int = 0
    start: int = 0
    """Where they begin in the segment, once they are there."""
    appended: list[tuple[Write, int]] = field(default_factory=list)
    """Those whose record is in `parts`, and where it begins there."""
    placed: list[tuple[Write, Place, bytes]] = field(default_factory=list)
    """Those whose data lies in a place of its own, and the head that belongs there."""

    def add(self, write: Write) -> None:
        """Make the record of a write that has been decided."""
        self.writes.append(write)
        if write.place is not None and write.action is Action.WRITE:
            self.placed.append((write, write.place, write.head(write.place.segment)))
            return
        head = write.head(self.segment)
        self.appended.append((write, self.size))
        self.parts.append(head)
        self.size += len(head)
        if write.data:
            self.parts += (write.data, write.sums)
            self.size += len(write.data) + len(write.sums)

    def entries(self, arrived: int) -> list[tuple[bytes, bytes]]:
        """Key and packed entry of every write whose record is on disk."""
        home, start = self.segment.number, self.start
        return [
            (write.key, write.entry(home, start + offset, arrived))
            for write, offset in self.appended
            if write.error is None
        ] + [
            (write.key, write.entry(place.segment.number, place.offset, arrived))
            for write, place, _ in self.placed
            if write.error is None
        ]


class Log:
    """The writing side of a volume for one process.

    `claim` and `show` are quick and called by one thread; `log` waits for the disk and
    may be called by another, one batch at a time.
    """

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        index: Index,
        recent: Recent,
        *,
        clock: Clock,
        now: Callable[[], float] = time.time,
        segment_size: int | None = None,
    ) -> None:
        self._disk, self._root = disk, layout.root
        self._index, self._recent = index, recent
        self._clock, self._now = clock, now
        self.broken: str | None = None
        self.appender = Appender(disk, layout, recent, segment_size=segment_size)

    def place(self, name_and_metadata: int, length: int, *, alone: bool) -> Place:
        """Room for a blob to be streamed into; raises `Full`, `ReadOnly`. From any thread."""
        self._refuse_if_broken()
        return self.appender.place(name_and_metadata, length, alone=alone)

    def claim(self, writes: list[Write]) -> tuple[Batch, list[Write]]:
        """Decide; returns the batch to log, and the writes whose names others claim."""
        batch = Batch(self.appender.active)
        waiting: list[Write] = []
        try:
            self._refuse_if_broken()
            self._decide(writes, batch, waiting)
        except DolmenError as error:
            _fail(writes, error)
        except Exception as error:  # noqa: BLE001 - a caller must never be left waiting
            _fail(writes, self.refused(error))
        else:
            return batch, waiting
        return Batch(batch.segment), []

    def refused(self, error: Exception) -> DolmenError:
        """What to tell of an error that came before anything was committed."""
        if no_room(error):
            return self.appender.full()
        return Unavailable(f"the volume {self._root} stored nothing, because of: {error!r}")

    def _decide(self, writes: list[Write], batch: Batch, waiting: list[Write]) -> None:
        now = self._now()
        full = not self.appender.has_room(sum(write.room for write in writes))
        with self._recent.change() as change:
            free = _unclaimed(change, writes, waiting)
            standing = self._standing(change, list(free))
            claimed: list[Write] = []
            for key, write in free.items():
                write.standing = standing.get(key)
                try:
                    if full and write.needs_room:
                        raise self.appender.full()
                    write.action, write.answer = write.judge(self._clock, now)
                except DolmenError as error:
                    write.error = error
                    continue
                if write.action is not Action.KEEP:
                    claimed.append(write)
            if claimed:
                change.claim([write.key for write in claimed], batch.segment.number)
                sequence = change.take_sequences(len(claimed))
                for write in claimed:
                    write.sequence = sequence
                    sequence += 1
                    batch.add(write)

    def _standing(self, change: Change, keys: list[bytes]) -> dict[bytes, Entry]:
        values = change.get_many(keys)
        values.update(self._index.get_many([key for key in keys if key not in values]))
        entries = ((key, unpack(value)) for key, value in values.items())
        return {key: entry for key, entry in entries if entry.kind != Kind.REMOVAL}

    def log(self, batch: Batch) -> None:
        """Write every record to its place, the batch's own ones in one go, and flush once.

        What failed has its error in the writes; `show` is called all the same.
        """
        appender = self.appender
        try:
            homes: dict[int, Segment] = {}
            if batch.parts:
                batch.start, flushed = appender.append(
                    batch.parts, batch.size, through=not batch.placed
                )
                if not flushed:
                    homes[batch.segment.number] = batch.segment
            for _, place, head in batch.placed:
                self._disk.write(place.segment.fd, [head], place.offset)
                homes[place.segment.number] = place.segment
            appender.flush(homes.values())
        except DolmenError as error:
            _fail(batch.writes, error)
        except OSError as error:
            self._break(f"a write or flush failed: {error}")
            _fail(batch.writes, OutcomeUnknown(f"the volume could not be written: {error}"))
        else:
            self._roll()

    def _roll(self) -> None:
        """Go on in a new segment if need be. The batch is on disk, whatever comes of this."""
        try:
            self.appender.roll()
        except (OSError, lmdb.Error) as error:
            if not no_room(error):  # else the old one has to do until there is
                self._break(f"a new segment could not be made: {error}")

    def show(self, batch: Batch) -> None:
        """Let the batch's entries be seen and its claims go."""
        alone: list[Segment] = []
        try:
            with self._recent.change() as change:
                change.release([write.key for write in batch.writes])
                shown = batch.entries(int(self._now()))
                if shown:
                    change.put(shown)
                    homes = {batch.segment.number: batch.segment}
                    for _, place, _ in batch.placed:
                        homes[place.segment.number] = place.segment
                        if place.alone:
                            alone.append(place.segment)
                        else:
                            place.segment.release_extent(place.offset)
                        place.gone = True
                    for home in homes.values():
                        change.set_segment(home.number, home.reach())
                elif self.broken is not None:
                    # Whatever came of it on the disk, it will be found there and read again.
                    change.set_segment(batch.segment.number, batch.segment.doubtful_reach())
                alone += self.appender.let_go(change)
        except Exception as error:  # noqa: BLE001 - a caller must never be left waiting
            self._break(f"its index failed: {error}")
            _fail(batch.writes, OutcomeUnknown(f"the volume's index failed: {error}"))
        for segment in alone:
            segment.close()

    def quarantine(self, key: bytes, bad: Entry) -> None:
        """Mark the copy that failed its check, unless another stands by now."""
        with self._recent.change() as change:
            standing = self._standing(change, [key]).get(key)
            if (
                standing is not None
                and not change.claimed([key])
                and (standing.segment, standing.offset) == (bad.segment, bad.offset)
            ):
                change.put([(key, standing._replace(damaged=True).pack())])

    def close(self) -> None:
        """Retire every segment; nothing is being streamed any more."""
        self.appender.close(sound=self.broken is None)

    def _break(self, why: str) -> ReadOnly:
        self.broken = why
        return ReadOnly(
            f"the volume {self._root} takes no writes because {why}; check the disk "
            "and the system's log, then start the server again"
        )

    def _refuse_if_broken(self) -> None:
        if self.broken is not None:
            raise self._break(self.broken)


def _unclaimed(change: Change, writes: list[Write], waiting: list[Write]) -> dict[bytes, Write]:
    """The first write of each name nobody else is deciding about; the others wait."""
    held = change.claimed([write.key for write in writes])
    free: dict[bytes, Write] = {}
    for write in writes:
        if write.key in held:
            write.looks += 1
            if write.looks < LOOKS:
                waiting.append(write)
            else:
                write.error = Unavailable(
                    f"{write.name} is being written by a process that does not come to an end; "
                    "nothing was stored: try again, or restart the servers of this volume"
                )
        elif write.key in free:
            waiting.append(write)
        else:
            free[write.key] = write
    return free


def _fail(writes: list[Write], error: DolmenError) -> None:
    for write in writes:
        if write.error is None:
            write.error = error
