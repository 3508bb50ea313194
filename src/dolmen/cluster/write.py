"""Writing to a cluster: which members take a write, and when it counts as done.

Members are tried in placement order, `write_copies` of them at once; one that fails is
replaced by the next, through every member of every group. Those that rest
(`dolmen.cluster.breaker`) are tried when there are too few without them. A write that
loses to a newer stamp is repeated above it, on every copy, before it is answered.
Read first: `dolmen.cluster.fan_out`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from dolmen.cluster.breaker import Breaker
from dolmen.cluster.fan_out import FanOut
from dolmen.cluster.groups import Failures, Group, Member, fail
from dolmen.cluster.manifest import MANIFEST_MAX
from dolmen.cluster.placement import Place, Placement
from dolmen.errors import Corrupt, NoCopies, NotFound, OutcomeUnknown, TooLarge, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.resolve import check, check_content
from dolmen.stamps import Clock
from dolmen.store import Outcome, Put, Write
from dolmen.stores.base import UnderWay

_ROUNDS = 8
"""How often a write is repeated above what it met before it gives up."""

_RENEWED_AT_ONCE = 16
"""Chunks. A server reads each to its end first, beside which a request for each costs little."""


class Written(NamedTuple):
    """A write that is done: on how many members, with which stamp, and what it met there."""

    copies: int
    stamp: int
    outcome: Outcome


class Writer:
    """The writes of the contract, and those of uploads."""

    def __init__(
        self, members: Sequence[Member], placement: Placement, breaker: Breaker, clock: Clock
    ) -> None:
        self._members, self._placement = members, placement
        self._breaker, self._clock = breaker, clock

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`. Of two plain puts the newer stamp wins; none is a conflict."""
        check(write)
        if write.kind == Kind.TOUCH:
            return await self._touch_all(write)
        if write.kind == Kind.TOMBSTONE:
            written = await self._delete(write.name, write.stamp)
            return Put(written.outcome, written.stamp)
        if write.payload.size > MANIFEST_MAX:
            raise TooLarge(f"a cluster keeps blobs of up to {MANIFEST_MAX} bytes; upload an object")
        data = await read_whole(write.payload)
        checksum = checksum_of(data)
        check_content(write, checksum)
        written = await self.put(replace(write, payload=Bytes(data), checksum=checksum))
        return Put(written.outcome, written.stamp)

    def put(self, put: Write, *, known: bool = False) -> Awaitable[Written]:
        """Put a blob or manifest that is in memory, and say on how many members it is.

        `known` says that it may well be there already: each member is first asked to
        touch what it has, and sent the data only if it has not. Raises `NoCopies` when
        fewer than `min_copies` members took it.
        """
        name, payload, kind, meta = put.name, put.payload, put.kind, put.metadata
        assert payload.whole is not None
        checksum = put.checksum or checksum_of(payload.whole)

        async def touch_or_write(member: Member, at: int, write: Write) -> Put:
            try:
                return await _touch(member, name, at, checksum, meta)
            except (NotFound, Corrupt):
                return await member.store.write(write)

        def send(at: int, member: Member) -> Awaitable[Put]:
            write = Write(name, payload, kind, meta, at, checksum)
            if known and member.store.capabilities.stamps:
                return touch_or_write(member, at, write)
            return member.store.write(write)

        return self._write(name, send, put.stamp)

    def renew(self, name: str, checksum: bytes, meta: bytes = b"") -> Awaitable[Written]:
        """Raise the stamp of what is stored on as many members as a write would go to.

        Raises `NoCopies` when it is sound, and of this checksum, on fewer than `min_copies`.
        """
        return self._write(name, lambda at, member: _touch(member, name, at, checksum, meta), None)

    async def renew_chunks(self, chunks: Sequence[str], which: Iterable[int]) -> int:
        """Make sure that chunks are there, and young. `which` are numbers of `chunks`.

        Returns the copies of the chunk that has fewest; raises `NoCopies` for one that has
        too few.
        """
        fewest = 255
        async with UnderWay[Written]() as under_way:
            for name in (chunks[number] for number in which):
                if len(under_way) == _RENEWED_AT_ONCE:
                    fewest = min(fewest, (await under_way.next()).copies)
                under_way.add(self.renew(name, checksum_in(name)))
            while under_way:
                fewest = min(fewest, (await under_way.next()).copies)
        return fewest

    async def _touch_all(self, write: Write) -> Put:
        """Raise the stamp of every copy that is there."""
        fan_out = FanOut(lambda member: member.store.write(write), self._breaker)
        await fan_out.run(self._members, len(self._members))
        if not fan_out.answers:
            fail(f"{write.name} could not be touched", fan_out.failures)
        return max((put for _, put in fan_out.answers), key=lambda put: put.stamp)

    async def _above(
        self, name: str, stamp: int | None, attempt: Callable[[int], Awaitable[Written]]
    ) -> Written:
        """Write with this stamp; or, where there is none, with one above whatever is met."""
        at = self._clock.next() if stamp is None else stamp
        for _ in range(_ROUNDS):
            written = await attempt(at)
            self._clock.observe(written.stamp)
            if written.outcome is not Outcome.SUPERSEDED or stamp is not None:
                return written
            at = self._clock.next(above=written.stamp)
        raise OutcomeUnknown(f"{name} is being written by others all the time; try again")

    def _write(
        self, name: str, send: Callable[[int, Member], Awaitable[Put]], stamp: int | None
    ) -> Awaitable[Written]:
        place = self._placement.place_of(name)
        group = place.group

        async def attempt(at: int) -> Written:
            fan_out = FanOut(partial(send, at), self._breaker, group.counts)
            if self._breaker.troubles:
                await self._despite_troubles(place, fan_out)
            else:
                await fan_out.run(place.order, group.write_copies)
            if fan_out.counted < group.min_copies:
                failures = fan_out.failures + _volatile(group, fan_out.answers)
                raise NoCopies(f"{name} could not be stored", failures)
            newest, outcome = 0, Outcome.UNCHANGED
            for _, put in fan_out.answers:
                newest = max(newest, put.stamp)
                if put.outcome is not Outcome.UNCHANGED and outcome is not Outcome.SUPERSEDED:
                    outcome = put.outcome
            return Written(fan_out.counted, newest, outcome)

        return self._above(name, stamp, attempt)

    async def _despite_troubles(self, place: Place, fan_out: FanOut[Put]) -> None:
        """Write to the first members that take it; to those that rest where there are too few."""
        wanted = place.group.write_copies
        breaker = self._breaker
        resting: list[Member] = []
        await fan_out.run(breaker.writing(place.order, resting), wanted)
        # Who fails at once is asked for every copy that is wanted, who hangs for those needed.
        for hangs, least in ((False, wanted), (True, place.group.min_copies)):
            if fan_out.counted < least:
                again = [member for member in resting if breaker.hangs(member) is hangs]
                await fan_out.run(again, least - fan_out.counted)

    async def _delete(self, name: str, stamp: int | None) -> Written:
        """Leave a tombstone on every member that should hold it, and any other that does.

        Raises `Unavailable` unless `min_copies` members of its group took it, and every copy
        found in another group is overruled there; it can then be repeated. A copy on a member
        that could not be asked loses to the tombstones.
        """
        place = self._placement.place_of(name)
        group = place.group

        async def attempt(at: int) -> Written:
            tombstone = Write.tombstone(name, stamp=at)
            anyway = {*place.rightful}
            left: dict[str, str] = {}
            """Copies in other groups that are not overruled: their server and its group."""

            async def bury(member: Member) -> Put | None:
                if member not in anyway:
                    if not await _holds(member, name):
                        return None
                    if member not in group.members:
                        left[member.name] = self._group_of(member)
                put = await member.store.write(tombstone)
                left.pop(member.name, None)
                return put

            fan_out = FanOut(bury, self._breaker)
            await fan_out.run(self._members, len(self._members))
            puts = _puts(fan_out)
            if _counted(group, puts) < group.min_copies:
                done = anyway.union(member for member, _ in puts)
                others = [member for member in group.members if member not in done]
                anyway.update(others)
                await fan_out.run(others, len(others))
                puts = _puts(fan_out)
            failures = fan_out.failures
            if left or _counted(group, puts) < group.min_copies:
                failures += _volatile(group, puts)
                where = next(iter(left.values()), group.name)
                raise Unavailable(
                    str(NoCopies(f"{name} could not be deleted in group {where}", failures))
                )
            for server, error in failures:
                if isinstance(error, (Unavailable, OutcomeUnknown)):
                    self._breaker.missed(server)
            newest = max((put for _, put in puts), key=lambda put: put.stamp)
            return Written(len(puts), newest.stamp, newest.outcome)

        return await self._above(name, stamp, attempt)

    def _group_of(self, member: Member) -> str:
        return next(group.name for group in self._placement.groups if member in group.members)


async def _touch(member: Member, name: str, stamp: int, checksum: bytes, meta: bytes) -> Put:
    """Raise the stamp of one copy. Raises `NotFound` where there is none of this checksum."""
    try:
        return await member.store.write(
            Write.touch(name, stamp=stamp, checksum=checksum, metadata=meta)
        )
    except NotFound as absent:
        if absent.stamp < stamp:
            raise
        return Put(Outcome.SUPERSEDED, absent.stamp)  # by a delete: to be repeated above it


def checksum_in(chunk: str) -> bytes:
    """The checksum of a chunk: the first half of the digest in its name."""
    return bytes.fromhex(chunk[-64:-32])


async def _holds(member: Member, name: str) -> bool:
    try:
        await member.store.stat(name)
    except NotFound as error:
        return error.stamp > 0
    except Corrupt:
        pass
    return True


def _puts(fan_out: FanOut[Put | None]) -> Sequence[tuple[Member, Put]]:
    return [(member, put) for member, put in fan_out.answers if put is not None]


def _counted(group: Group, puts: Sequence[tuple[Member, Put]]) -> int:
    return sum(member in group.members and group.counts(member) for member, _ in puts)


def _volatile(group: Group, puts: Sequence[tuple[Member, Put]]) -> Failures:
    """Who of a group took a write and does not count."""
    return [
        (member.name, Unavailable("accepted, but not counted: not durable"))
        for member, _ in puts
        if not group.counts(member)
    ]
