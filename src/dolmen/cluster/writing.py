"""Writing to a cluster: how members are chosen, and when a write stands.

Members are tried in placement order, `write_copies` of them at once; one that fails is
replaced by the next, through every member of every group. Those that rest
(`dolmen.cluster.breaker`) are tried when there are fewer than `min_copies` without them. A
write that loses to a newer stamp is repeated above it, on every copy, before it is answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from dolmen.cluster.asking import Failures, each, fail, together
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.members import Members
from dolmen.cluster.placement import Place
from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    InvalidName,
    NoCopies,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from dolmen.names import check_name, checksum_of, is_chunk_name, partition_of
from dolmen.payload import Bytes, Payload, read_whole
from dolmen.record import Kind
from dolmen.resolve import check, check_content
from dolmen.store import Outcome, Put, Remove, Write

Action = Callable[[Member, int], Awaitable[Put]]
_ROUNDS = 8
"""How often a write is repeated above what it met before it gives up."""


class Written(NamedTuple):
    """A write that stands: on how many members, with which stamp, and what it met there."""

    copies: int
    stamp: int
    outcome: Outcome


class Writing(Members):
    """The writes of the contract, and those of uploads."""

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`. Of two plain puts the newer stamp wins; none is a conflict."""
        check(write)
        if write.kind == Kind.TOMBSTONE:
            return await self._delete(write.name, stamp=write.stamp)
        if write.kind == Kind.TOUCH:
            return await self._touch(write)
        payload = write.payload
        if payload.whole is None:
            payload = Bytes(await read_whole(payload))
        if is_chunk_name(write.name):
            check_content(write, checksum_of(payload.whole or b""))
        written = await self.keep(
            write.name,
            payload,
            meta=write.metadata,
            stamp=write.stamp,
            kind=Kind(write.kind),
            checksum=write.checksum,
        )
        return Put(written.outcome, written.stamp)

    async def keep(
        self,
        name: str,
        payload: Payload,
        *,
        meta: bytes = b"",
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
        known: bool = False,
    ) -> Written:
        """Put a payload that is in memory, and say on how many members it stands.

        `known` says that it may well be there already: each member is first asked to
        touch what it has, and sent the data only if it has not. Raises `NoCopies` when
        fewer than `min_copies` members took it.
        """
        if checksum is None:
            assert payload.whole is not None
            checksum = checksum_of(payload.whole)

        async def store(member: Member, at: int) -> Put:
            if known and member.store.capabilities.stamps:
                try:
                    await member.store.stat(name)  # costs far less than a touch in vain
                    touch = Write.touch(name, stamp=at, checksum=checksum, metadata=meta)
                    return await member.store.write(touch)
                except (NotFound, Corrupt):
                    pass
            return await member.store.write(Write(name, payload, kind, meta, at, checksum))

        return await self._write(name, stamp, store)

    async def renew(self, name: str, size: int, *, meta: bytes = b"") -> int:
        """Raise the stamp of what is stored on as many members as a write would go to.

        Returns on how many; 0 when it is on fewer than `min_copies`, or is damaged, or of
        another size than `size` bytes.
        """

        async def touch(member: Member, at: int) -> Put:
            try:
                info = await member.store.stat(name)
            except NotFound as absent:
                if absent.stamp < at:
                    raise
                # A delete that would undo this: to be repeated above it.
                return Put(Outcome.SUPERSEDED, absent.stamp)
            if info.size != size:
                raise NotFound(f"{name} is not as long there")
            touch = Write.touch(name, stamp=at, checksum=info.checksum, metadata=meta)
            return await member.store.write(touch)

        try:
            return (await self._write(name, None, touch)).copies
        except NoCopies:
            return 0

    async def _touch(self, write: Write) -> Put:
        """Raise the stamp of every copy that is there."""
        answers, failures = await each(self.members, lambda member: member.store.write(write))
        if not answers:
            fail(f"{write.name} could not be touched", failures)
        return max(answers, key=lambda put: put.stamp)

    async def _write(self, name: str, stamp: int | None, action: Action) -> Written:
        place = self.placement.of(partition_of(name))
        at = self.clock.next() if stamp is None else stamp
        for _ in range(_ROUNDS):
            puts, failures = await self._first(place, action, at)
            counted = _counted(place.group, puts)
            if counted < place.group.min_copies:
                forgetful = _forgetful(place.group, puts)
                raise NoCopies(f"{name} could not be stored", failures + forgetful)
            standing = max(put.stamp for _, put in puts)
            superseded = [put for _, put in puts if put.outcome is Outcome.SUPERSEDED]
            if not superseded or stamp is not None:
                outcome = superseded[0].outcome if superseded else _common(puts)
                return Written(counted, standing, outcome)
            at = self.clock.next(above=standing)
        raise OutcomeUnknown(f"{name} is being written by others all the time; try again")

    async def _first(
        self, place: Place, action: Action, stamp: int
    ) -> tuple[list[tuple[Member, Put]], Failures]:
        """Write to the first members that take it; who does not count comes on top."""
        puts: list[tuple[Member, Put]] = []
        failures: Failures = []
        breaker = self.breaker

        async def one(members: Iterable[Member]) -> None:
            for member in members:
                began = breaker.now()
                try:
                    puts.append((member, await action(member, stamp)))
                except (BadContent, InvalidName):
                    raise  # it would be the same on every member
                except DolmenError as error:
                    failures.append((member.name, error))
                    breaker.failed(member, error, began)
                    continue
                if breaker.troubles:
                    breaker.answered(member, wrote=True)
                if place.group.counts(member):
                    return

        async def some(members: Iterable[Member], copies: int) -> None:
            members = iter(members)  # shared: each member is tried once
            if copies == 1:
                await one(members)
            else:
                await together([one(members) for _ in range(copies)])

        wanted = place.group.write_copies
        if not breaker.troubles:
            await some(place.order, wanted)
            return puts, failures
        resting: list[Member] = []
        await some(breaker.writing(place.order, resting), wanted)
        # Who fails at once is asked for every copy that is wanted, who hangs for those needed.
        for hangs, least in ((False, wanted), (True, place.group.min_copies)):
            lacking = least - _counted(place.group, puts)
            if lacking > 0:
                await some([each for each in resting if breaker.hangs(each) is hangs], lacking)
        return puts, failures

    async def _delete(self, name: str, *, stamp: int | None = None) -> Put:
        """Leave a tombstone on every member that should hold it, and any other that does.

        Raises `Unavailable` unless `min_copies` members of its group took it; it can then
        be repeated. A copy on a member that could not be asked loses to them.
        """
        at = self.clock.next() if stamp is None else stamp
        group = self.placement.of(partition_of(name)).group
        for _ in range(_ROUNDS):
            puts, failures = await self._bury(name, at)
            if _counted(group, _within(group, puts)) < group.min_copies:
                failures += _forgetful(group, puts)
                fail(f"{name} could not be deleted in group {group.name}", failures)
            newest = max((put for _, put in puts), key=lambda put: put.stamp)
            if newest.stamp <= at or stamp is not None:
                return newest
            at = self.clock.next(above=newest.stamp)
        raise OutcomeUnknown(f"{name} is being written by others all the time; try again")

    async def _bury(self, name: str, stamp: int) -> tuple[list[tuple[Member, Put]], Failures]:
        place = self.placement.of(partition_of(name))
        puts: list[tuple[Member, Put]] = []

        async def bury(member: Member, *, anyway: bool) -> None:
            began = self.breaker.now()
            try:
                if anyway or await _holds(member, name):
                    tombstone = Write.tombstone(name, stamp=stamp)
                    puts.append((member, await member.store.write(tombstone)))
            except DolmenError as error:
                self.breaker.failed(member, error, began)
                raise
            if self.breaker.troubles:
                self.breaker.answered(member)

        _, failures = await each(
            self.members, lambda member: bury(member, anyway=member in place.rightful)
        )
        if _counted(place.group, _within(place.group, puts)) < place.group.min_copies:
            buried = [member for member, _ in puts]
            others = [
                member
                for member in place.group.members
                if member not in buried and member not in place.rightful
            ]
            _, more = await each(others, lambda member: bury(member, anyway=True))
            failures += more
        return puts, failures

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`: from every member."""
        check_name(remove.name)
        answers, failures = await each(
            self.members,
            lambda member: member.store.remove_many([remove], min_age=min_age),
        )
        if failures:
            fail(f"{remove.name} could not be removed everywhere", failures)
        return any(removed for [removed] in answers)


async def _holds(member: Member, name: str) -> bool:
    try:
        await member.store.stat(name)
    except NotFound as error:
        return error.stamp > 0
    except Corrupt:
        pass
    return True


def _counted(group: Group, puts: Sequence[tuple[Member, Put]]) -> int:
    return sum(group.counts(member) for member, _ in puts)


def _within(group: Group, puts: Sequence[tuple[Member, Put]]) -> Sequence[tuple[Member, Put]]:
    return [each for each in puts if each[0] in group.members]


def _forgetful(group: Group, puts: Sequence[tuple[Member, Put]]) -> Failures:
    """Who took a write and does not count."""
    why = Unavailable("it took it, but is not durable: it does not count as a copy")
    return [(member.name, why) for member, _ in puts if not group.counts(member)]


def _common(puts: Sequence[tuple[Member, Put]]) -> Outcome:
    unchanged = all(put.outcome is Outcome.UNCHANGED for _, put in puts)
    return Outcome.UNCHANGED if unchanged else Outcome.CREATED
