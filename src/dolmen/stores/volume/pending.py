"""Writes on their way through a commit: how each is decided, and the record it makes.

Read first: `dolmen.resolve`, `entry`. `commit` carries them out.
"""

from __future__ import annotations

from dolmen.record import Kind, block_sums
from dolmen.resolve import Action, Decision, may_remove, resolve
from dolmen.stamps import Clock
from dolmen.store import NO_CHECKSUM, Outcome, Put, Write
from dolmen.stores.volume.answer import Answer
from dolmen.stores.volume.disk import Buffer
from dolmen.stores.volume.entry import Entry, Place, key_of


class Pending:
    """One write on its way through a commit: a put, touch or delete.

    A put carries its data, or (`alone`) the number of a file of its own that has it.
    """

    __slots__ = (
        "alone",
        "answer",
        "checksum",
        "data",
        "encoded",
        "entry",
        "essential",
        "key",
        "old",
        "put",
        "retried",
        "sound",
        "sums",
        "write",
    )

    def __init__(
        self,
        write: Write,
        checksum: bytes,
        data: bytes | memoryview = b"",
        sums: bytes | None = None,
        *,
        alone: Place | None = None,
    ) -> None:
        self.answer: Answer[Put]
        self.write, self.checksum = write, checksum
        self.encoded = write.name.encode()
        self.key = key_of(write.name)
        self.data = data
        self.sums = block_sums(data) if sums is None else sums
        self.alone = alone
        self.sound: dict[Place, bool] = {}
        """Whether the data that was read at a place is sound."""
        self.old: Entry | None = None
        self.entry: Entry | None = None
        self.put: Put | None = None
        self.retried = False
        self.essential = not data
        """Whether a full disk takes it: it makes room, or adds next to nothing."""

    def decide(self, current: Entry | None, clock: Clock, now: float) -> Decision:
        """Decide by the rules of the contract; raises what they raise."""
        del now
        write = self.write
        if current is None:
            return resolve(write, None, checksum=self.checksum, clock=clock)
        return resolve(
            write,
            current.info(write.name),
            checksum=self.checksum,
            damaged=current.damaged,
            clock=clock,
        )

    def settle(self, touch: bool, put: Put, place: Place, arrived: int) -> tuple[int, Buffer]:
        """Make the entry; returns kind and data of the record that says so."""
        metadata = self.write.metadata
        self.put = put
        if self.alone is not None:
            write = self.write
            self.entry = Entry(
                self.alone,
                0,
                write.kind,
                write.payload.size,
                put.stamp,
                self.checksum,
                arrived,
                metadata,
                place,
                alone=True,
            )
        elif touch:
            assert self.old is not None
            self.entry = self.old._replace(
                stamp=put.stamp, arrived=arrived, metadata=metadata, head=place
            )
        else:
            kind, data = self.write.kind, self.data
            self.entry = Entry(
                place, len(metadata), kind, len(data), put.stamp, self.checksum, arrived, metadata
            )
            return kind, data
        return Kind.TOUCH, self.entry.touch()


class Removal(Pending):
    """The store's own copy is to go, without a tombstone."""

    __slots__ = ("if_stamp", "min_age")

    def __init__(self, name: str, *, if_stamp: int, min_age: float) -> None:
        super().__init__(Write(name, kind=Kind.REMOVAL), NO_CHECKSUM)
        self.if_stamp, self.min_age = if_stamp, min_age

    def decide(self, current: Entry | None, clock: Clock, now: float) -> Decision:
        """See `Pending.decide`. `CREATED` says that it goes."""
        del clock
        info = None if current is None else current.info(self.write.name)
        if may_remove(info, if_stamp=self.if_stamp, min_age=self.min_age, now=now):
            return Decision(Action.WRITE, Put(Outcome.CREATED, self.if_stamp))
        return Decision(Action.KEEP, Put(Outcome.SUPERSEDED, 0))

    def settle(self, touch: bool, put: Put, place: Place, arrived: int) -> tuple[int, Buffer]:
        """See `Pending.settle`."""
        del touch, place, arrived
        self.put, self.entry = put, None
        return Kind.REMOVAL, b""
