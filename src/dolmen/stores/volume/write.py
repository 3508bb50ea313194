"""One write on its way through a commit: what is asked, what was decided, what came of it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence

from dolmen.errors import BadContent, DolmenError, InvalidName
from dolmen.record import Kind, block_sums, encode_head, sums_size
from dolmen.stamps import MAX_STAMP, Clock
from dolmen.store import Outcome, Put
from dolmen.stores.old_verdict import (
    NO_CHECKSUM,
    Action,
    Verdict,
    judge_delete,
    judge_put,
    judge_touch,
    may_remove,
)
from dolmen.stores.volume import revision
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.key import key_of
from dolmen.stores.volume.place import Place
from dolmen.stores.volume.segment import Segment

Buffer = bytes | memoryview


class Op(enum.Enum):
    """What is asked."""

    PUT = enum.auto()
    DELETE = enum.auto()
    TOUCH = enum.auto()
    REMOVE = enum.auto()
    MOVE = enum.auto()
    """See `move.Move`."""


class Write:
    """A put, delete, touch or remove of one name.

    A put carries its data (`data` and its block checksums `sums`), or the `place`
    it was streamed to. A remove carries in `stamp` the stamp that must stand.
    """

    __slots__ = (
        "action",
        "answer",
        "checksum",
        "data",
        "done",
        "error",
        "key",
        "kind",
        "length",
        "looks",
        "metadata",
        "min_age",
        "name",
        "op",
        "place",
        "sequence",
        "stamp",
        "standing",
        "sums",
    )

    def __init__(
        self,
        op: Op,
        name: str,
        *,
        stamp: int | None,
        kind: int = Kind.TOMBSTONE,
        checksum: bytes = NO_CHECKSUM,
        metadata: bytes = b"",
        data: Buffer = b"",
        sums: bytes = b"",
        length: int = 0,
        place: Place | None = None,
        min_age: float = 0,
    ) -> None:
        if stamp is not None and not 0 <= stamp <= MAX_STAMP:
            raise InvalidName(f"{stamp} is no stamp: a stamp is a number of 64 bits")
        self.op, self.name, self.key = op, name, key_of(name)
        self.stamp, self.checksum, self.metadata = stamp, checksum, metadata
        self.kind = Kind.REMOVAL if op is Op.REMOVE else kind
        self.data, self.sums, self.length, self.place = data, sums, length, place
        self.min_age = min_age
        self.action = Action.KEEP
        self.answer = Put(Outcome.UNCHANGED, 0)
        self.error: DolmenError | None = None
        self.standing: Entry | None = None
        self.sequence = 0
        self.looks = 0
        """How often its name was found to be claimed by another process."""
        self.done: asyncio.Future[Put] | None = None

    def judge(self, clock: Clock, now: float) -> Verdict:
        """Decide against what stands, by the rules of the contract; raises what they raise."""
        standing = self.standing
        info = standing.info(self.name) if standing is not None else None
        damaged = standing is not None and standing.damaged
        if self.op is Op.PUT:
            return judge_put(
                self.name,
                info,
                damaged=damaged,
                kind=self.kind,
                checksum=self.checksum,
                metadata=self.metadata,
                stamp=self.stamp,
                clock=clock,
            )
        if self.op is Op.DELETE:
            return judge_delete(info, damaged=damaged, stamp=self.stamp, clock=clock)
        assert self.stamp is not None
        if self.op is Op.TOUCH:
            return judge_touch(
                self.name,
                info,
                damaged=damaged,
                checksum=self.checksum,
                metadata=self.metadata,
                stamp=self.stamp,
            )
        if may_remove(info, if_stamp=self.stamp, min_age=self.min_age, now=now):
            return Verdict(Action.WRITE, Put(Outcome.CREATED, self.stamp))
        return Verdict(Action.KEEP, Put(Outcome.SUPERSEDED, info.stamp if info else 0))

    def head(self, home: Segment) -> bytes:
        """Everything of the record that stands before its data, once it has been decided."""
        kind, length = self.kind, self.length
        if self.action is Action.REVISE:
            assert self.standing is not None
            self.data = revision.encode(self.standing)
            self.sums = block_sums(self.data)
            kind, length = Kind.TOUCH, revision.SIZE
        return encode_head(
            kind,
            self.name.encode(),
            self.metadata,
            length,
            self.answer.stamp,
            self.checksum,
            sequence=self.sequence,
            owner=home.owner,
            flushed=home.flushed,
        )

    def entry(self, segment: int, offset: int, arrived: int) -> bytes:
        """The packed entry it makes, with its record at this place."""
        stamp, sequence = self.answer.stamp, self.sequence
        if self.action is Action.REVISE:
            assert self.standing is not None
            revised = self.standing._replace(
                stamp=stamp, sequence=sequence, arrived=arrived, metadata=self.metadata
            )
            return revised.pack()
        return Entry(
            segment,
            offset,
            len(self.metadata),
            self.length,
            stamp,
            sequence,
            self.kind,
            self.checksum,
            arrived,
            self.metadata,
        ).pack()

    @property
    def needs_room(self) -> bool:
        """Whether a full disk refuses it: new data does, what makes room or keeps data does not."""
        return self.op is Op.PUT and self.place is None

    @property
    def room(self) -> int:
        """About how many bytes it still has to write."""
        return 0 if self.place else self.length + sums_size(self.length)


def settle(writes: Sequence[Write]) -> None:
    """Give every caller its answer. On the event loop's thread."""
    for write in writes:
        done = write.done
        if done is None or done.done():
            continue
        if write.error is not None:
            done.set_exception(write.error)
        else:
            done.set_result(write.answer)


def compare(name: str, found: bytes, announced: bytes | None) -> None:
    """Raise `BadContent` when the data has another checksum than was announced."""
    if announced is not None and announced != found:
        raise BadContent(f"the data of {name} does not have the checksum announced")
