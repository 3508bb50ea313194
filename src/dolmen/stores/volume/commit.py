"""The commit: decide, write, flush once, show, answer.

Writes that arrive while the disk is busy form the next batch. A batch goes
through four steps, on one thread of its own:

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

import errno
import time
from collections.abc import Callable

import lmdb

from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly
from dolmen.record import Kind, record_size
from dolmen.stamps import Clock
from dolmen.stores.verdict import Action
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.place import Place
from dolmen.stores.volume.recent import Change, Reach, Recent
from dolmen.stores.volume.segment import SEGMENT_HEADER, Segment, create, publish
from dolmen.stores.volume.write import Write

SEGMENT_SIZE = 1 << 30


class Log:
    """The writing side of a volume for one process: its active segment and the commit.

    Everything here blocks and is called by one thread, except `place`.
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
        self._disk, self._layout, self._index, self._recent = disk, layout, index, recent
        self._clock, self._now = clock, now
        total = disk.space(layout.root)[1]
        self.segment_size = segment_size or max(min(SEGMENT_SIZE, total // 64), 1 << 20)
        self.reserve = self.segment_size
        self.broken: str | None = None
        self._active = self._new_segment()
        self._retired: list[Segment] = []

    def _new_segment(self) -> Segment:
        segment = create(self._disk, self._layout, self._recent)
        publish(self._disk, self._layout, segment)
        return segment

    def place(self, name_and_metadata: int, length: int, *, alone: bool) -> Place:
        """Room for a blob to be streamed into; raises `Full`. From any thread."""
        self._refuse_if_broken()
        size = record_size(0, 0, length) + name_and_metadata
        try:
            if self._disk.space(self._layout.root)[0] < self.reserve + size:
                raise self._full()
            if alone:
                segment = create(self._disk, self._layout, self._recent)
                self._disk.reserve(segment.fd, 0, SEGMENT_HEADER + size)
                offset = segment.append(size)
            else:
                segment = self._active
                offset = segment.take_extent(size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from error
            raise
        return Place(self._disk, segment, offset, name_and_metadata, length, alone=alone)

    def commit(self, batch: list[Write]) -> list[Write]:
        """Carry a batch out; returns the writes that must wait for another commit to end.

        All others have their answer or error.
        """
        waiting: list[Write] = []
        try:
            self._refuse_if_broken()
            claimed = self._claim(batch, waiting)
        except DolmenError as error:
            _fail(batch, error)
            return []
        except (OSError, lmdb.Error) as error:
            _fail(batch, self._break(f"its index failed: {error}"))
            return []
        if claimed:
            try:
                self._log(claimed)
                self._show(claimed)
            except DolmenError as error:
                self._unclaim(claimed)
                _fail(claimed, error)
            except (OSError, lmdb.Error) as error:
                self._break(f"a write or flush failed: {error}")
                self._unclaim(claimed)
                _fail(claimed, OutcomeUnknown(f"the volume could not be written: {error}"))
        return waiting

    def _claim(self, batch: list[Write], waiting: list[Write]) -> list[Write]:
        now = self._now()
        full = self._disk.space(self._layout.root)[0] < self.reserve + sum(w.room for w in batch)
        change = self._recent.change()
        try:
            free = self._unclaimed(change, batch, waiting)
            standing = self._standing(change, list(free))
            claimed: list[Write] = []
            for key, write in free.items():
                write.standing = standing.get(key)
                try:
                    if full and write.needs_room:
                        raise self._full()
                    write.action, write.answer = write.judge(self._clock, now)
                except DolmenError as error:
                    write.error = error
                    continue
                if write.action is not Action.KEEP:
                    claimed.append(write)
            if claimed:
                change.claim([write.key for write in claimed], self._active.number)
                sequence = change.take_sequences(len(claimed))
                for write in claimed:
                    write.sequence = sequence
                    sequence += 1
        except BaseException:
            change.abort()
            raise
        change.commit()
        return claimed

    def _unclaimed(
        self, change: Change, batch: list[Write], waiting: list[Write]
    ) -> dict[bytes, Write]:
        """The first write of each name nobody else is deciding about; the others wait."""
        held = change.claimed([write.key for write in batch])
        free: dict[bytes, Write] = {}
        for write in batch:
            if write.key in held or write.key in free:
                waiting.append(write)
            else:
                free[write.key] = write
        return free

    def _standing(self, change: Change, keys: list[bytes]) -> dict[bytes, Entry]:
        values = change.get_many(keys)
        values.update(self._index.get_many([key for key in keys if key not in values]))
        entries = ((key, unpack(value)) for key, value in values.items())
        return {key: entry for key, entry in entries if entry.kind != Kind.REMOVAL}

    def _log(self, writes: list[Write]) -> None:
        """Write every record to its place, the batch's own ones in one go, and flush."""
        arrived = int(self._now())
        segment = self._active
        parts: list[bytes | memoryview] = []
        appended: list[tuple[Write, int]] = []
        placed: list[tuple[Write, Place]] = []
        size = 0
        for write in writes:
            if write.place is not None and write.action is Action.WRITE:
                placed.append((write, write.place))
                continue
            appended.append((write, size))
            head = write.head(segment)
            parts.append(head)
            size += len(head)
            if write.data:
                parts += (write.data, write.sums)
                size += len(write.data) + len(write.sums)
        homes: dict[int, Segment] = {}
        if parts:
            start = self._append(segment, parts, size)
            homes[segment.number] = segment
            for write, offset in appended:
                write.value = write.entry(segment.number, start + offset, arrived).pack()
        for write, place in placed:
            home = place.segment
            self._disk.write(home.fd, [write.head(home)], place.offset)
            homes[home.number] = home
            write.value = write.entry(home.number, place.offset, arrived).pack()
        for home in homes.values():
            self._flush(home)

    def _append(self, segment: Segment, parts: list[bytes | memoryview], size: int) -> int:
        offset = segment.append(size)
        try:
            self._disk.write(segment.fd, parts, offset)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not segment.give_back(offset):
                raise
            # What was written of it must not come back after a crash.
            self._disk.flush(segment.fd)
            raise self._full() from error
        return offset

    def _flush(self, segment: Segment) -> None:
        if segment.path == self._layout.unfinished(segment.number):
            publish(self._disk, self._layout, segment)
            segment.retired = True
            return
        end = segment.end
        self._disk.flush(segment.fd)
        segment.flushed = end

    def _show(self, writes: list[Write]) -> None:
        change = self._recent.change()
        homes = {self._active.number: self._active}
        alone: list[Segment] = []
        try:
            change.put([(write.key, write.value) for write in writes])
            change.release([write.key for write in writes])
            for write in writes:
                place = write.place
                if place is None or write.action is not Action.WRITE:
                    continue
                homes[place.segment.number] = place.segment
                if place.alone:
                    alone.append(place.segment)
                else:
                    place.segment.release_extent(place.offset)
                write.place = None  # it is no longer the caller's to abandon
            if self._active.end >= self.segment_size:
                self._active.retired = True
            for home in homes.values():
                change.set_segment(home.number, home.reach())
        except BaseException:
            change.abort()
            raise
        change.commit()
        for segment in alone:
            segment.close()
        if self._active.retired:
            self._retired.append(self._active)
            self._active = self._new_segment()
        if self._retired:
            self._let_go()

    def _let_go(self) -> None:
        """Close segments that were retired and whose last extent has been settled since."""
        finished = [segment for segment in self._retired if segment.reach().finished]
        change = self._recent.change()
        for segment in finished:
            change.set_segment(segment.number, segment.reach())
        change.commit()
        for segment in finished:
            self._retired.remove(segment)
            segment.close()

    def close(self) -> None:
        """Retire everything; nothing is being streamed any more."""
        if self.broken is None:
            change = self._recent.change()
            for segment in [*self._retired, self._active]:
                end = segment.end
                change.set_segment(segment.number, Reach(end, end, finished=True))
            change.commit()
        for segment in [*self._retired, self._active]:
            segment.close()

    def quarantine(self, key: bytes, bad: Entry) -> None:
        """Mark the copy that failed its check, unless another stands by now."""
        change = self._recent.change()
        try:
            standing = self._standing(change, [key]).get(key)
            if (
                standing is not None
                and not change.claimed([key])
                and (standing.segment, standing.offset) == (bad.segment, bad.offset)
            ):
                change.put([(key, standing._replace(damaged=True).pack())])
        except BaseException:
            change.abort()
            raise
        change.commit()

    def _unclaim(self, writes: list[Write]) -> None:
        change = self._recent.change()
        change.release([write.key for write in writes])
        change.commit()

    def _full(self) -> Full:
        return Full(
            f"the disk under {self._layout.root} is full (less than {self.reserve >> 20} MiB "
            "would be left): delete something or add a server; reading goes on"
        )

    def _break(self, why: str) -> ReadOnly:
        self.broken = why
        return ReadOnly(
            f"the volume {self._layout.root} takes no writes because {why}; check the disk "
            "and the system's log, then start the server again"
        )

    def _refuse_if_broken(self) -> None:
        if self.broken is not None:
            raise self._break(self.broken)


def _fail(writes: list[Write], error: DolmenError) -> None:
    for write in writes:
        if write.error is None:
            write.error = error
