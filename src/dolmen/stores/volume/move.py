"""A move: what stands is written again, so that the segment it lies in can go.

A move is a write like any other. It claims its name, is decided against what stands, gets
a sequence of its own, and is flushed before it is seen; so all that `docs/durability.md`
says of writes holds of it, and a put, touch, delete, remove or quarantine of the same name,
in whatever process, comes wholly before it or wholly after.

Of a record in the old segment is written:

- a blob, manifest or tombstone that stands there: the same with the stamp and metadata that
  stand now, which takes in its revisions;
- one that stands there and whose data is damaged: a revision of the place that will be
  gone. It keeps the name from answering "not there", or with an older content;
- the last revision of a blob that lies elsewhere, or is known to be damaged: the same revision;
- a removal under whose name nothing stands: a removal.

All else was overruled by a record with a higher sequence, and is left behind.
"""

from __future__ import annotations

from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import Outcome, Put
from dolmen.stores.old_verdict import Action, Verdict
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.write import Op, Write

_LEAVE = Verdict(Action.KEEP, Put(Outcome.SUPERSEDED, 0))


class Move(Write):
    """Of the record of `name` at this place.

    `sound` says that its data is given (`data` and `sums`, or `place`); it is not where the
    data is damaged.
    """

    __slots__ = ("offset", "origin", "overrules", "room_for", "sound")

    def __init__(
        self, name: str, origin: int, offset: int, *, kind: int, sequence: int = 0, stamp: int = 0
    ) -> None:
        super().__init__(Op.MOVE, name, stamp=stamp, kind=kind)
        self.origin, self.offset = origin, offset
        self.overrules = sequence
        """The record's own sequence, which a revision must still have to be the last one."""
        self.sound = True
        self.room_for: int | None = None
        """How long the metadata may be where it is streamed to a place."""

    def judge(self, clock: Clock, now: float) -> Verdict:  # noqa: ARG002 - as every write's
        """Whether the record is still needed, and as what."""
        standing = self.standing
        if standing is None:
            return self._again(Action.WRITE, self.stamp or 0) if self._is_removal else _LEAVE
        here = standing.segment == self.origin
        lost = standing.damaged
        if self.kind == Kind.TOUCH:
            # What it revises here is moved with it. Where that is not found, it can be read.
            if standing.sequence != self.overrules or (here and not lost):
                return _LEAVE
        elif self._is_removal or not here or standing.offset != self.offset:
            return _LEAVE
        else:
            lost = lost or not self.sound
        self.metadata, self.checksum = standing.metadata, standing.checksum
        if self.kind == Kind.TOUCH or lost:
            self.standing = standing._replace(damaged=lost)
            return self._again(Action.REVISE, standing.stamp)
        if self.room_for not in (None, len(self.metadata)):
            return _LEAVE  # touched meanwhile; it is tried again another time
        self.kind, self.length = standing.kind, standing.length
        return self._again(Action.WRITE, standing.stamp)

    def entry(self, segment: int, offset: int, arrived: int) -> bytes:
        """As any write's, but it arrived when it did."""
        standing: Entry | None = self.standing
        return super().entry(segment, offset, standing.arrived if standing else arrived)

    @property
    def _is_removal(self) -> bool:
        return self.kind == Kind.REMOVAL

    def _again(self, action: Action, stamp: int) -> Verdict:
        return Verdict(action, Put(Outcome.UNCHANGED, stamp))
