"""Writing to a cluster: which members take a write, and when it counts as done.

Members are tried in placement order, `write_copies` of them at once; one that fails is
replaced by the next, through every member of every group. Those that rest
(`dolmen.cluster.breaker`) are tried when there are too few without them. A write that
loses to a newer stamp is repeated above it, on every copy, before it is answered.
Read first: `dolmen.cluster.fan_out`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.cluster.breaker import Breaker
from dolmen.cluster.failures import Failures, fail
from dolmen.cluster.fan_out import FanOut
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.placement import Place, Placement
from dolmen.errors import (
    Corrupt,
    DolmenError,
    NoCopies,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from dolmen.names import checksum_of, is_chunk_name
from dolmen.payload import Bytes, Payload, read_whole
from dolmen.record import Kind
from dolmen.resolve import check, check_content
from dolmen.stamps import Clock
from dolmen.store import Failed, Outcome, Put, Write

Action = Callable[[Member], Awaitable[Put]]
Puts = Sequence[tuple[Member, Put]]
_ROUNDS = 8
"""How often a write is repeated above what it met before it gives up."""


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

    async def write(self, write: Write, *, largest: int) -> Put:
        """See `BlobStore.write`. Of two plain puts the newer stamp wins; none is a conflict."""
        check(write)
        if write.kind == Kind.TOMBSTONE:
            return await self._delete(write.name, write.stamp)
        if write.kind == Kind.TOUCH:
            return await self._touch(write)
        payload = write.payload
        if payload.size > largest:
            raise TooLarge(f"a cluster keeps blobs of up to {largest} bytes; upload an object")
        if payload.whole is None:
            payload = Bytes(await read_whole(payload))
        if is_chunk_name(write.name):
            check_content(write, checksum_of(payload.whole or b""))
        meta, kind = write.metadata, Kind(write.kind)
        written = await self.put(
            write.name, payload, meta, stamp=write.stamp, kind=kind, checksum=write.checksum
        )
        return Put(written.outcome, written.stamp)

    async def put(
        self,
        name: str,
        payload: Payload,
        meta: bytes = b"",
        *,
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
        known: bool = False,
    ) -> Written:
        """Put a payload that is in memory, and say on how many members it is.

        `known` says that it may well be there already: each member is first asked to
        touch what it has, and sent the data only if it has not. Raises `NoCopies` when
        fewer than `min_copies` members took it.
        """
        if checksum is None:
            assert payload.whole is not None
            checksum = checksum_of(payload.whole)

        def action(at: int) -> Action:
            write = Write(name, payload, kind, meta, at, checksum)
            if not known:
                return lambda member: member.store.write(write)

            async def touch(member: Member) -> Put:
                if member.store.capabilities.stamps:
                    try:
                        await member.store.stat(name)  # costs far less than a touch in vain
                        again = Write.touch(name, stamp=at, checksum=checksum, metadata=meta)
                        return await member.store.write(again)
                    except (NotFound, Corrupt):
                        pass
                return await member.store.write(write)

            return touch

        return await self._write(name, action, stamp)

    async def renew(self, name: str, size: int, meta: bytes = b"") -> Written:
        """Raise the stamp of what is stored on as many members as a write would go to.

        Raises `NoCopies` when it is sound, and of `size` bytes, on fewer than `min_copies`.
        """

        def action(at: int) -> Action:
            async def touch(member: Member) -> Put:
                try:
                    info = await member.store.stat(name)
                except NotFound as absent:
                    if absent.stamp < at:
                        raise
                    # A delete that would undo this: to be repeated above it.
                    return Put(Outcome.SUPERSEDED, absent.stamp)
                if info.size != size:
                    raise NotFound(f"{name} has another length there")
                again = Write.touch(name, stamp=at, checksum=info.checksum, metadata=meta)
                return await member.store.write(again)

            return touch

        return await self._write(name, action, None)

    async def renew_chunks(
        self, chunks: Sequence[str], which: Sequence[int], size_of: Callable[[int], int]
    ) -> int:
        """Make sure that chunks are there, and young: raise their stamps, many in a request.

        `which` are numbers of `chunks`, `size_of` gives the size of one. Returns the copies
        of the chunk that has fewest; raises `NoCopies` for one that has too few.
        """
        touched = bytearray(len(chunks))
        at = self._clock.next()

        async def touch(member: Member) -> None:
            numbers: list[int] = []

            async def touches() -> AsyncIterator[Write]:
                for number in which:
                    name = chunks[number]
                    place = self._placement.place_of(name)
                    if member in place.order[: place.group.write_copies]:
                        numbers.append(number)
                        checksum = bytes.fromhex(name[-64:-32])
                        yield Write.touch(name, stamp=at, checksum=checksum)

            done = 0
            async with closing(member.store.write_many(touches())) as answers:
                async for put in answers:
                    number, done = numbers[done], done + 1
                    if not isinstance(put, Failed) and put.outcome is not Outcome.SUPERSEDED:
                        touched[number] += self._placement.place_of(chunks[number]).group.counts(
                            member
                        )

        fan_out = FanOut(touch, self._breaker)
        able = [member for member in self._members if member.store.capabilities.stamps]
        if len(which):
            await fan_out.run(able, len(able))
        fewest = 255
        for number in which:
            copies = touched[number]
            if copies < self._placement.place_of(chunks[number]).group.write_copies:
                copies = (await self.renew(chunks[number], size_of(number))).copies
            fewest = min(fewest, copies)
        return fewest

    async def _touch(self, write: Write) -> Put:
        """Raise the stamp of every copy that is there."""
        fan_out = FanOut(lambda member: member.store.write(write), self._breaker)
        await fan_out.run(self._members, len(self._members))
        if not fan_out.answers:
            fail(f"{write.name} could not be touched", fan_out.failures)
        return max((put for _, put in fan_out.answers), key=lambda put: put.stamp)

    async def _write(
        self, name: str, action: Callable[[int], Action], stamp: int | None
    ) -> Written:
        place = self._placement.place_of(name)
        group = place.group
        at = self._clock.next() if stamp is None else stamp
        for _ in range(_ROUNDS):
            fan_out = FanOut(action(at), self._breaker, group.counts, wrote=True)
            await self._first(place, fan_out)
            copies, newest, outcome = 0, 0, Outcome.UNCHANGED
            for member, put in fan_out.answers:
                copies += group.counts(member)
                newest = max(newest, put.stamp)
                if put.outcome is not Outcome.UNCHANGED and outcome is not Outcome.SUPERSEDED:
                    outcome = put.outcome
            if copies < group.min_copies:
                failures = fan_out.failures + _volatile(group, fan_out.answers)
                raise NoCopies(f"{name} could not be stored", failures)
            self._clock.observe(newest)
            if outcome is not Outcome.SUPERSEDED or stamp is not None:
                return Written(copies, newest, outcome)
            at = self._clock.next(above=newest)
        raise OutcomeUnknown(f"{name} is being written by others all the time; try again")

    async def _first(self, place: Place, fan_out: FanOut[Put]) -> None:
        """Write to the first members that take it; who does not count comes on top."""
        wanted = place.group.write_copies
        breaker = self._breaker
        if not breaker.troubles:
            await fan_out.run(place.order, wanted)
            return
        resting: list[Member] = []
        await fan_out.run(breaker.writing(place.order, resting), wanted)
        # Who fails at once is asked for every copy that is wanted, who hangs for those needed.
        for hangs, least in ((False, wanted), (True, place.group.min_copies)):
            lacking = least - _counted(place.group, fan_out.answers)
            if lacking > 0:
                again = [member for member in resting if breaker.hangs(member) is hangs]
                await fan_out.run(again, lacking)

    async def _delete(self, name: str, stamp: int | None) -> Put:
        """Leave a tombstone on every member that should hold it, and any other that does.

        Raises `Unavailable` unless `min_copies` members of its group took it, and every copy
        found in another group is overruled there; it can then be repeated. A copy on a member
        that could not be asked loses to the tombstones.
        """
        place = self._placement.place_of(name)
        group = place.group
        at = self._clock.next() if stamp is None else stamp
        for _ in range(_ROUNDS):
            puts, failures, missed = await self._bury(name, place, at)
            within = _within(group, puts)
            if missed or _counted(group, within) < group.min_copies:
                failures += _volatile(group, within)
                where = f"{name} could not be deleted in group {missed or group.name}"
                raise Unavailable(str(NoCopies(where, failures)))
            newest = max((put for _, put in puts), key=lambda put: put.stamp)
            self._clock.observe(newest.stamp)
            if newest.stamp <= at or stamp is not None:
                for member, error in failures:
                    if isinstance(error, (Unavailable, OutcomeUnknown)):
                        self._breaker.missed(member)
                return newest
            at = self._clock.next(above=newest.stamp)
        raise OutcomeUnknown(f"{name} is being written by others all the time; try again")

    async def _bury(self, name: str, place: Place, stamp: int) -> tuple[Puts, Failures, str]:
        """Write tombstones; also returns in which other group a copy was found and left."""
        tombstone = Write.tombstone(name, stamp=stamp)
        found: dict[str, str] = {}
        nothing = Put(Outcome.UNCHANGED, -1)

        async def bury_copy(member: Member) -> Put:
            if not await _holds(member, name):
                return nothing
            if member not in place.group.members:
                found[member.name] = self._group_of(member)
            put = await member.store.write(tombstone)
            found.pop(member.name, None)
            return put

        def bury(member: Member) -> Awaitable[Put]:
            anyway = member in place.rightful
            return member.store.write(tombstone) if anyway else bury_copy(member)

        fan_out = FanOut(bury, self._breaker)
        await fan_out.run(self._members, len(self._members))
        puts = [(member, put) for member, put in fan_out.answers if put is not nothing]
        failures = fan_out.failures
        if _counted(place.group, _within(place.group, puts)) < place.group.min_copies:
            done = [member for member, _ in puts]
            others = [
                member
                for member in place.group.members
                if member not in done and member not in place.rightful
            ]
            more = FanOut(lambda member: member.store.write(tombstone), self._breaker)
            await more.run(others, len(others))
            puts += more.answers
            failures += more.failures
        return puts, failures, next(iter(found.values()), "")

    def _group_of(self, member: Member) -> str:
        return next(group.name for group in self._placement.groups if member in group.members)


async def _holds(member: Member, name: str) -> bool:
    try:
        await member.store.stat(name)
    except NotFound as error:
        return error.stamp > 0
    except Corrupt:
        pass
    return True


def _counted(group: Group, puts: Puts) -> int:
    return sum(group.counts(member) for member, _ in puts)


def _within(group: Group, puts: Puts) -> Puts:
    return [(member, put) for member, put in puts if member in group.members]


def _volatile(group: Group, puts: Puts) -> Failures:
    """Who took a write and does not count."""
    why: DolmenError = Unavailable("accepted, but not counted: not durable")
    return [(member.name, why) for member, _ in puts if not group.counts(member)]
