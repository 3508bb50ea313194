"""A set of stores that is a store.

- `dolmen.cluster.write`: writes go to several members, until enough have taken them.
- `dolmen.cluster.read`: reads ask the members in turn; what is handed out is checked, and
  what could not be asked is never taken for "not there".

Both use `dolmen.cluster.breaker` (whom to ask last).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from dolmen.closing import closing
from dolmen.cluster.breaker import Breaker
from dolmen.cluster.budget import Budget
from dolmen.cluster.fan_out import each
from dolmen.cluster.groups import Failures, Group, Member, fail
from dolmen.cluster.hedging import Hedging
from dolmen.cluster.manifest import MANIFEST_MAX
from dolmen.cluster.placement import Placement
from dolmen.cluster.read import Reader
from dolmen.cluster.write import Writer
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import DolmenError, NotFound, Unavailable
from dolmen.names import check_name, partition_of
from dolmen.record import Kind
from dolmen.resolve import check_key
from dolmen.stamps import Clock
from dolmen.store import (
    EVERYTHING,
    IDENTITY,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Listing,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne
from dolmen.stores.epoch import check_epoch, seen_in
from dolmen.stores.watermark import purged_in, watermark_in

_CHECKED = 1.0
"""Seconds for which it is believed that no server has seen a higher epoch."""
_PATIENCE = 5.0
"""Seconds for which a server's notes are waited for."""


class Cluster(OneByOne):
    """Groups of stores as one store for blobs of up to 16 MiB.

    `epoch` is that of the configuration, where it has one: as soon as a server has seen a
    higher one, nothing is deleted and nothing called absent any more. `now` gives seconds
    from any start. `budget` bounds the bodies in flight.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        clock: Clock | None = None,
        now: Callable[[], float] = time.monotonic,
        budget: Budget | None = None,
        epoch: int | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.members = tuple(member for group in groups for member in group.members)
        self.placement = Placement(groups)
        self.breaker = Breaker(now)
        self.hedging = Hedging(now)
        self.budget = budget or Budget()
        self.clock = clock or Clock()
        self.writer = Writer(self.members, self.placement, self.breaker, self.clock)
        self.reader = Reader(
            self.placement, self.breaker, self.hedging, self.budget, self.check_current
        )
        self._epoch, self._epoch_checked = epoch, -_CHECKED
        self._outdated: str | None = None
        """Why this configuration is not to be acted on: a server has seen a newer one."""
        self.capabilities = Capabilities(
            durable=all(member.store.capabilities.durable for member in self.members),
            largest=MANIFEST_MAX,
            digests=False,
            ordered=True,
            conflicts=False,
        )

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        check_name(name)
        if byte_range is None:
            return await self.reader.get(name)
        return await self.reader.part_of(await self.reader.stat(name), byte_range)

    def stat(self, name: str) -> Awaitable[BlobInfo]:
        """See `BlobStore.stat`."""
        return self.reader.stat(check_name(name))

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`. Of two plain puts the newer stamp wins; none is a conflict."""
        if write.kind == Kind.TOMBSTONE:
            await self.check_current()
        return await self.writer.write(write)

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """See `BlobStore.remove_many`: from every member."""
        for name, _ in removes:
            check_name(name)
        if epoch is not None:
            await check_epoch(self, epoch)
        answers, failures = await each(
            self.members,
            lambda member: member.store.remove_many(removes, min_age=min_age, epoch=epoch),
        )
        if failures:
            fail("not every server could be asked to remove copies", failures)
        return [any(removed) for removed in zip(*(said for _, said in answers), strict=True)]

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`: merged over all members, of each name what ranks highest.

        Raises `Unavailable` before the first name that a member which can't be asked may be the
        only one to have. Stale members are left out.
        """
        failures: Failures = []
        async with closing(self.reader.list(listing, failures)) as infos:
            async for info in infos:
                self._check_whole(failures)
                yield info
        self._check_whole(failures)

    def _check_whole(self, failures: Failures) -> None:
        if failures:
            stale = {member.name for member in self.members if member.stale is not None}
            away = [each for each in failures if each[0] not in stale]
            if away:
                fail("not every server could be listed", away)

    async def digests(self) -> Digests:
        """See `BlobStore.digests`: worked out from a listing of everything."""
        slots: dict[int, Slot] = {}
        async for info in self.list(Listing(tombstones=True)):
            entry = entry_hash(
                info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata
            )
            slots.setdefault(partition_of(info.name), Slot()).add(info.size, entry)
        return Digests(slots)

    async def copies_of(self, name: str) -> Sequence[tuple[Member, BlobInfo | DolmenError]]:
        """What each member says of a name, in placement order."""

        async def ask(member: Member) -> tuple[Member, BlobInfo | DolmenError]:
            try:
                return member, await member.store.stat(name)
            except NotFound as absent:
                deleted = BlobInfo(name, 0, Kind.TOMBSTONE, absent.stamp, NO_CHECKSUM)
                return member, deleted if absent.stamp else absent
            except DolmenError as error:
                return member, error

        return await asyncio.gather(*map(ask, self.placement.of(partition_of(name)).order))

    # The servers themselves

    async def check_current(self) -> None:
        """Raise `Unavailable` when a server has seen a configuration newer than this one."""
        if self._epoch is None:
            return
        now = self.breaker.now()
        if self._outdated is None and now - self._epoch_checked >= _CHECKED:
            self._epoch_checked = now
            for member, notes in await self._notes():
                with suppress(DolmenError):  # `dolmen check` tells of a damaged note
                    if (seen := seen_in(notes).epoch) > self._epoch:
                        self._outdated = (
                            f"{member.name} has seen epoch {seen} of the configuration, this is "
                            f"epoch {self._epoch}: give this server the newer configuration and "
                            "restart it"
                        )
        if self._outdated is not None:
            raise Unavailable(self._outdated)

    async def _notes(self) -> Sequence[tuple[Member, Mapping[str, bytes]]]:
        """The notes of those members that answer soon."""
        keeping = [member for member in self.members if member.store.capabilities.stamps]
        return (await each(keeping, lambda member: member.store.notes(), _PATIENCE))[0]

    async def leave_out_stale(self) -> None:
        """Use no member that missed a purge, as its notes say (`dolmen.stores.watermark`)."""
        notes = await self._notes()
        newest = max((purged_in(noted) for _, noted in notes), default=0)
        for member, noted in notes:
            if watermark_in(noted) < newest:
                member.stale = "it missed deletes that were forgotten since"

    async def twins(self) -> Sequence[tuple[str, str]]:
        """Pairs of members that are one store under two addresses, of those that answer."""
        names: dict[bytes, list[str]] = {}
        for member, notes in await self._notes():
            if identity := notes.get(IDENTITY):
                names.setdefault(identity, []).append(member.name)
        return [(first, other) for first, *others in names.values() for other in others]

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`: on every member."""
        check_key(key)
        _, failures = await each(self.members, lambda member: member.store.note(key, value))
        if failures:
            fail("the note could not be kept everywhere", failures)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`: those of all members together, of each the highest."""
        answers, failures = await each(self.members, lambda member: member.store.notes())
        if failures:
            fail("the notes could not be read everywhere", failures)
        pairs = [pair for _, notes in answers for pair in notes.items()]
        return dict(sorted(pairs))

    async def condition(self) -> Condition:
        """See `BlobStore.condition`: of all members together."""
        answers, failures = await each(self.members, lambda member: member.store.condition())
        for member, condition in answers:
            self.breaker.says(member, condition)
        writable = any(said.writable for member, said in answers if member.stale is None)
        reasons = [f"{name}: {error}" for name, error in failures]
        reasons += [f"{each.name} is stale: {each.stale}" for each in self.members if each.stale]
        try:
            await self.check_current()
        except Unavailable as error:
            writable, reasons = False, [*reasons, str(error)]
        said = [condition for _, condition in answers]
        return Condition(
            sum(each.free or 0 for each in said) or None,
            sum(each.total or 0 for each in said) or None,
            writable=writable,
            reasons=reasons + [reason for each in said for reason in each.reasons],
            remarks=[remark for each in said for remark in each.remarks],
        )

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        for member in self.members:
            await member.store.aclose()
