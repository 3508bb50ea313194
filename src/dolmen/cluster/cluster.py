"""A set of stores that is a store: writes go to several members, reads ask until one answers.

Writes: the members are tried in placement order, `write_copies` of them at once; one
that fails is replaced by the next, through every member of every group. A write that
loses to a newer stamp is repeated above it, on every copy, before it is answered.

Reads: the members are asked in the same order. What is handed out has been checked
against its name. "Not there" is said only when every member said so; a tombstone
is a "no" that also overrules older copies on others. A member that could not be
asked, or whose copy is damaged, makes the answer `Unavailable`, never `NotFound`.

Circuit breaking and hedging would go into `_in_order`, read repair where
`_passed_over` is called.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from dolmen import metadata
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.manifest import CHUNK, MANIFEST_MAX
from dolmen.cluster.placement import Place, Placement
from dolmen.cluster.verify import verified
from dolmen.digests import Digests, Slot, entry_hash
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
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, read_whole
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import (
    ALL_PARTITIONS,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Outcome,
    Put,
    Range,
)
from dolmen.stores.bulk import OneByOne
from dolmen.stores.verdict import check_delete

Failures = list[tuple[str, DolmenError]]
Action = Callable[[Member, int], Awaitable[Put]]
T = TypeVar("T")
_ROUNDS = 8
"""How often a write is repeated above what it met before it gives up."""


class Written(NamedTuple):
    """A write that stands: on how many members, with which stamp, and what it met there."""

    copies: int
    stamp: int
    outcome: Outcome


class Cluster(OneByOne):
    """Groups of stores as one store for blobs of up to 16 MiB."""

    def __init__(self, groups: Sequence[Group], *, clock: Clock | None = None) -> None:
        self.groups = tuple(groups)
        self.placement = Placement(groups)
        self.clock = clock or Clock()
        members = [member for group in groups for member in group.members]
        self.members = tuple(members)
        self.capabilities = Capabilities(
            durable=all(member.store.capabilities.durable for member in members),
            largest=MANIFEST_MAX,
            digests=False,
            ordered=True,
            conflicts=False,
        )

    # Writing

    async def put(
        self,
        name: str,
        payload: Payload,
        *,
        meta: bytes = b"",
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
    ) -> Put:
        """See `BlobStore.put`. Of two plain puts the newer stamp wins; none is a conflict."""
        check_name(name)
        metadata.check(meta)
        if payload.whole is None:
            payload = Bytes(await read_whole(payload))
        written = await self.write(
            name, payload, meta=meta, stamp=stamp, kind=kind, checksum=checksum
        )
        return Put(written.outcome, written.stamp)

    async def write(
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
                    return await member.store.touch(name, stamp=at, checksum=checksum, meta=meta)
                except (NotFound, Corrupt):
                    pass
            return await member.store.put(
                name, payload, meta=meta, stamp=at, kind=kind, checksum=checksum
            )

        return await self._write(name, stamp, store)

    async def renew(self, name: str, size: int, *, meta: bytes = b"") -> int:
        """Raise the stamp of what is stored on as many members as a write would go to.

        Returns on how many; 0 when it is on fewer than `min_copies`, or is damaged, or of
        another size than `size` bytes.
        """

        async def touch(member: Member, at: int) -> Put:
            info = await member.store.stat(name)
            if info.size != size:
                raise NotFound(f"{name} is not as long there")
            return await member.store.touch(name, stamp=at, checksum=info.checksum, meta=meta)

        try:
            return (await self._write(name, None, touch)).copies
        except NoCopies:
            return 0

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`: of every copy that is there."""
        check_name(name)
        metadata.check(meta)
        answers, failures = await _each(
            self.members,
            lambda member: member.store.touch(name, stamp=stamp, checksum=checksum, meta=meta),
        )
        if not answers:
            _raise(f"{name} could not be touched", failures)
        return max(answers, key=lambda put: put.stamp)

    async def _write(self, name: str, stamp: int | None, action: Action) -> Written:
        place = self.placement.of(partition_of(name))
        at = self.clock.next() if stamp is None else stamp
        for _ in range(_ROUNDS):
            puts, failures = await self._first(place, action, at)
            counted = sum(1 for member, _ in puts if place.group.counts(member))
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
        wanted = place.group.write_copies
        puts: list[tuple[Member, Put]] = []
        failures: Failures = []
        members = self._in_order(place.order)

        async def one() -> None:
            for member in members:  # shared: each member is tried once
                try:
                    puts.append((member, await action(member, stamp)))
                except (BadContent, InvalidName):
                    raise  # it would be the same on every member
                except DolmenError as error:
                    failures.append((member.name, error))
                    continue
                if place.group.counts(member):
                    return

        if wanted == 1:
            await one()
        else:
            await _together([one() for _ in range(wanted)])
        return puts, failures

    def _in_order(self, order: Sequence[Member]) -> Iterator[Member]:
        return iter(order)

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`: on every member of every group.

        Raises `Unavailable` unless every group took it on `min_copies` members; it can
        then be repeated.
        """
        check_name(name)
        check_delete(stamp)
        at = self.clock.next() if stamp is None else stamp
        for _ in range(_ROUNDS):
            answers: list[Put] = []
            for group in self.groups:
                puts, failures = await self._bury(name, group, at)
                if sum(1 for member, _ in puts if group.counts(member)) < group.min_copies:
                    failures += _forgetful(group, puts)
                    _raise(f"{name} could not be deleted in group {group.name}", failures)
                answers += [put for _, put in puts]
            newest = max(answers, key=lambda put: put.stamp)
            if newest.stamp <= at or stamp is not None:
                return newest
            at = self.clock.next(above=newest.stamp)
        raise OutcomeUnknown(f"{name} is being written by others all the time; try again")

    async def _bury(
        self, name: str, group: Group, stamp: int
    ) -> tuple[Sequence[tuple[Member, Put]], Failures]:
        async def bury(member: Member) -> tuple[Member, Put]:
            return member, await member.store.delete(name, stamp=stamp)

        return await _each(group.members, bury)

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`: from every member."""
        check_name(name)
        answers, failures = await _each(
            self.members,
            lambda member: member.store.remove(name, if_stamp=if_stamp, min_age=min_age),
        )
        if failures:
            _raise(f"{name} could not be removed everywhere", failures)
        return any(answers)

    # Reading

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        check_name(name)
        deleted = 0
        failures: Failures = []
        for member in self._in_order(self.placement.of(partition_of(name)).order):
            try:
                blob = await member.store.get(name, byte_range=byte_range)
                if deleted and blob.info.stamp <= deleted:
                    continue
                if byte_range is not None and blob.info.size <= CHUNK:
                    # Only the whole can be checked against its name.
                    blob = await member.store.get(name)
                good = await verified(blob, byte_range)
            except NotFound as absent:
                deleted = max(deleted, absent.stamp)
            except DolmenError as error:
                self._passed_over(member, name, error, failures)
            else:
                if good is not None:
                    return good
                wrong = Corrupt(f"its copy of {name} has other content than the name says")
                self._passed_over(member, name, wrong, failures)
        raise _absent(name, deleted, failures)

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        check_name(name)
        deleted: BlobInfo | None = None
        failures: Failures = []
        for member in self._in_order(self.placement.of(partition_of(name)).order):
            try:
                info = await member.store.stat(name, tombstones=True)
            except NotFound:
                continue
            except DolmenError as error:
                self._passed_over(member, name, error, failures)
                continue
            if deleted is not None and info.rank <= deleted.rank:
                continue
            if info.kind != Kind.TOMBSTONE:
                return info
            deleted = info
        if deleted is not None and tombstones and not failures:
            return deleted
        raise _absent(name, deleted.stamp if deleted else 0, failures)

    def _passed_over(
        self, member: Member, name: str, error: DolmenError, failures: Failures
    ) -> None:
        """Note that a member could not give what it should have."""
        del name
        failures.append((member.name, error))

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`: merged over all members, of each name what ranks highest.

        Raises `Unavailable` when a member can't be asked, since names might be missing.
        """
        wanted = list(partitions)
        listings = [
            member.store.list(partitions=wanted, after=after, prefix=prefix, tombstones=True)
            for member in self.members
        ]
        heap: list[tuple[int, str, int, BlobInfo]] = []

        async def advance(which: int) -> None:
            info = await anext(listings[which], None)
            if info is not None:
                heapq.heappush(heap, (partition_of(info.name), info.name, which, info))

        for which in range(len(listings)):
            await advance(which)
        while heap:
            _, name, which, best = heapq.heappop(heap)
            await advance(which)
            while heap and heap[0][1] == name:
                _, _, which, info = heapq.heappop(heap)
                best = max(best, info, key=lambda found: found.rank)
                await advance(which)
            if tombstones or best.kind != Kind.TOMBSTONE:
                yield best

    async def digests(self) -> Digests:
        """See `BlobStore.digests`: worked out from a listing of everything."""
        slots: dict[int, Slot] = {}
        async for info in self.list(tombstones=True):
            entry = entry_hash(
                info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata
            )
            slots.setdefault(partition_of(info.name), Slot()).add(info.size, entry)
        return Digests(slots)

    async def copies_of(self, name: str) -> Sequence[tuple[Member, BlobInfo | DolmenError]]:
        """What each member says of a name, in placement order."""
        found: deque[tuple[Member, BlobInfo | DolmenError]] = deque()
        for member in self.placement.of(partition_of(name)).order:
            try:
                found.append((member, await member.store.stat(name, tombstones=True)))
            except DolmenError as error:
                found.append((member, error))
        return found

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`: on every member."""
        _, failures = await _each(self.members, lambda member: member.store.note(key, value))
        if failures:
            _raise("the note could not be kept everywhere", failures)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`: those of all members together."""
        answers, failures = await _each(self.members, lambda member: member.store.notes())
        if failures:
            _raise("the notes could not be read everywhere", failures)
        return {key: value for notes in answers for key, value in notes.items()}

    async def condition(self) -> Condition:
        """See `BlobStore.condition`: of all members together."""
        answers, failures = await _each(self.members, lambda member: member.store.condition())
        return Condition(
            sum(answer.free or 0 for answer in answers) or None,
            sum(answer.total or 0 for answer in answers) or None,
            writable=any(answer.writable for answer in answers),
            reasons=[f"{name}: {error}" for name, error in failures]
            + [reason for answer in answers for reason in answer.reasons],
            remarks=[remark for answer in answers for remark in answer.remarks],
        )

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        for member in self.members:
            await member.store.aclose()


async def _each(
    members: Sequence[Member], ask: Callable[[Member], Awaitable[T]]
) -> tuple[list[T], Failures]:
    """Ask all at once; the answers, and who failed."""
    answers: list[T] = []
    failures: Failures = []

    async def one(member: Member) -> None:
        try:
            answers.append(await ask(member))
        except DolmenError as error:
            failures.append((member.name, error))

    await _together([one(member) for member in members])
    return answers, failures


def _forgetful(group: Group, puts: Sequence[tuple[Member, Put]]) -> Failures:
    """Who took a write and does not count."""
    why = Unavailable("it took it, but is not durable: it does not count as a copy")
    return [(member.name, why) for member, _ in puts if not group.counts(member)]


async def _together(coroutines: Sequence[Awaitable[None]]) -> None:
    """Run all at once; when one raises, or the caller is cancelled, none goes on behind."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _common(puts: Sequence[tuple[Member, Put]]) -> Outcome:
    unchanged = all(put.outcome is Outcome.UNCHANGED for _, put in puts)
    return Outcome.UNCHANGED if unchanged else Outcome.CREATED


def _absent(name: str, deleted: int, failures: Failures) -> DolmenError:
    if not failures:
        return NotFound(f"{name} is on none of the servers", stamp=deleted)
    told = "; ".join(f"{member}: {error}" for member, error in failures)
    return Unavailable(f"{name} may exist, but not every server could be asked ({told})")


def _raise(what: str, failures: Failures) -> None:
    """Raise for members that failed; `NotFound` when all of them said so."""
    if failures and all(isinstance(error, NotFound) for _, error in failures):
        raise failures[0][1]
    told = "; ".join(f"{member}: {error}" for member, error in failures)
    raise Unavailable(f"{what} ({told})")
