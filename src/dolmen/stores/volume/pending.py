"""Writes on their way through a commit: how each is decided, what it makes current, its answer.

Read first: `dolmen.resolve`, `entry`. `commit` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dolmen.ready import Answer
from dolmen.resolve import Action, Decision, may_remove, resolve
from dolmen.stamps import Clock
from dolmen.store import NO_CHECKSUM, Outcome, Put, Write
from dolmen.stores.volume.disk import Buffer
from dolmen.stores.volume.entry import NOWHERE, Entry, Place
from dolmen.stores.volume.segment import BEGIN


@dataclass(slots=True, eq=False)
class Pending:
    """One write on its way through a commit: a put, touch or delete.

    A put carries its data with their block checksums, or (`alone`) the number of a file of its
    own that has it.
    """

    write: Write
    checksum: bytes = NO_CHECKSUM
    data: Buffer = b""
    sums: bytes = b""
    alone: int | None = None
    key: bytes = field(init=False)
    answer: Answer[Put] = field(init=False)
    old: Entry | None = None
    """What was current when it was decided."""
    entry: Entry | None = None
    """What is current when it is carried out; None: nothing."""
    put: Put | None = None
    """The answer, once it is decided."""
    read: dict[Place, bool] = field(default_factory=dict)
    """Copies it would touch that were read, and whether they are sound."""
    retried: bool = False

    @property
    def essential(self) -> bool:
        """Whether a full disk takes it: it makes room, or adds next to nothing."""
        return not self.data

    def decide(self, current: Entry | None, clock: Clock, now: float) -> Decision:
        """Decide by the rules of the contract; raises what they raise."""
        del now
        write, checksum = self.write, self.checksum
        if current is None:
            return resolve(write, None, checksum=checksum, clock=clock)
        info, damaged = current.info(write.name), current.damaged
        return resolve(write, info, checksum=checksum, damaged=damaged, clock=clock)

    def made(self, action: Action, put: Put, place: Place, arrived: int) -> Entry | None:
        """The entry that it leaves, when its record lies at `place`."""
        write, data, stamp = self.write, self.data, put.stamp
        if self.alone is not None:
            at, size = (self.alone, BEGIN), write.payload.size
            fixed = write.kind, size, stamp, self.checksum, arrived, write.metadata
            return Entry(at, 0, *fixed, head=place, alone=True)
        if action is Action.TOUCH:
            assert self.old is not None
            return self.old._replace(
                stamp=stamp, arrived=arrived, metadata=write.metadata, head=place
            )
        inner = len(write.metadata)
        fixed = write.kind, len(data), stamp, self.checksum, arrived, write.metadata
        return Entry(place, inner, *fixed)


@dataclass(slots=True, eq=False)
class Removal(Pending):
    """The store's own copy is to go, without a tombstone.

    One that compaction carries (`if_stamp` None) is written again unless something else is
    current by now.
    """

    if_stamp: int | None = None
    min_age: float = 0

    def decide(self, current: Entry | None, clock: Clock, now: float) -> Decision:
        """See `Pending`. `CREATED` says that it goes."""
        del clock
        if self.if_stamp is None:
            goes = current is None
        else:
            info = None if current is None else current.info(self.write.name)
            goes = may_remove(info, if_stamp=self.if_stamp, min_age=self.min_age, now=now)
        if goes:
            return Decision(Action.WRITE, Put(Outcome.CREATED, self.if_stamp or 0))
        return Decision(Action.KEEP, Put(Outcome.SUPERSEDED, 0))

    def made(self, action: Action, put: Put, place: Place, arrived: int) -> None:
        """See `Pending`."""


@dataclass(slots=True, eq=False)
class Move(Pending):
    """A copy's record is written again, at the end of the log, if it is still current.

    One that can't be read (`lost`) is nowhere then, and its entry goes on saying so.
    """

    expected: Entry = field(kw_only=True)
    lost: bool = False

    @property
    def essential(self) -> bool:
        """See `Pending`."""
        return True

    def decide(self, current: Entry | None, clock: Clock, now: float) -> Decision:
        """See `Pending`: whatever was written meanwhile stays."""
        del clock, now
        put = Put(Outcome.UNCHANGED, self.expected.stamp)
        return Decision(Action.WRITE if current == self.expected else Action.KEEP, put)

    def made(self, action: Action, put: Put, place: Place, arrived: int) -> Entry:
        """See `Pending`; stamp, metadata and time of arrival stay what they are."""
        del action, put, arrived
        old = self.expected
        if self.lost:
            return old._replace(data=NOWHERE, head=place, damaged=True)
        if self.data or not old.length:
            return old._replace(data=place, inner=len(old.metadata), head=None)
        return old._replace(head=place)
