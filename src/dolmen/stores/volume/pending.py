"""Writes on their way through a commit: how each is decided, what it makes current, its answer.

Read first: `dolmen.resolve`, `entry`. `commit` carries them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from dolmen.errors import DolmenError
from dolmen.names import checksum_of
from dolmen.ready import Answer
from dolmen.record import Kind, block_sums
from dolmen.resolve import Action, Decision, check, check_content, may_remove, resolve
from dolmen.stamps import Clock
from dolmen.store import NO_CHECKSUM, Failed, Outcome, Put, Write
from dolmen.stores.records import Framed
from dolmen.stores.volume.disk import Buffer
from dolmen.stores.volume.entry import NOWHERE, Entry, Place
from dolmen.stores.volume.segment import BEGIN

SMALL = 65_536
"""Blobs up to this size are hashed on the event loop."""
ALONE = 4 << 20
"""Bytes of data that are submitted together, and what counts as large goes by itself."""
_BARE = (Kind.TOMBSTONE, Kind.TOUCH)
"""Writes without data."""


class Bulk(asyncio.Future[None]):
    """Done when all its parts, one for each of the writes, are answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writes: Sequence[Write]) -> None:
        super().__init__(loop=loop)
        self.parts = [Part(self, write) for write in writes]
        self.left = len(writes)

    def answers(self) -> list[Put | Failed]:
        """The answers, in order; raises what is not one write's own."""
        return [part.result() for part in self.parts]


class Part:
    """The answer to one write of a bulk: a future for each would take a tenth of its time."""

    __slots__ = ("_answer", "_bulk", "write")

    def __init__(self, bulk: Bulk, write: Write) -> None:
        self._bulk, self.write = bulk, write
        self._answer: Put | BaseException | None = None

    def result(self) -> Put | Failed:
        """What was answered."""
        answer = self._answer
        if isinstance(answer, DolmenError):
            return Failed(self.write.name, answer)
        if isinstance(answer, BaseException):
            raise answer
        assert answer is not None
        return answer

    def done(self) -> bool:
        """Whether the bulk was cancelled."""
        return self._bulk.done()

    def succeed(self, answer: Put | BaseException) -> None:
        """Give the answer."""
        self._answer, bulk = answer, self._bulk
        bulk.left -= 1
        if not bulk.left and not bulk.done():
            bulk.set_result(None)

    fail = succeed

    def resume(self) -> None:
        """Nobody waits for a part."""


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
    answer: Answer[Put] | Part = field(init=False)
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


def size_of(write: Write) -> int:
    """The bytes of data it brings; `ALONE` where they are received first, or hashed in a thread."""
    payload = write.payload
    if (payload.whole is None or payload.size > SMALL) and write.kind not in _BARE:
        return ALONE
    return payload.size


def small(write: Write) -> Pending:
    """A write that is not large; raises what `BlobStore.write` raises for one of a wrong form."""
    check(write)
    if write.kind in _BARE:
        return Pending(write, (write.kind == Kind.TOUCH and write.checksum) or NO_CHECKSUM)
    data = write.payload.whole
    assert data is not None
    checksum = checksum_of(data)
    check_content(write, checksum)
    sums = write.payload.sums if isinstance(write.payload, Framed) else block_sums(data)
    return Pending(write, checksum, data, sums)


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
