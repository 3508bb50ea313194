"""Dropping misplaced copies: what stands on a server that should not hold it.

It got there because a rightful server could not be written to, or because servers joined,
left or changed their weight. It goes by `remove`, without a tombstone, once every durable
server that should hold the name has shown that it does: each has read its own copy to the
end, found it sound, and has it at no lower rank. Where one has not, or there is none, the copy
stays.

A damaged copy is in no listing, and would answer as damaged for good where it should not be. It
is replaced by what the rightful servers have, and then goes like any other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Placement
from dolmen.errors import DolmenError
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.replication.census import quarantined
from dolmen.replication.patience import Pause, ask, listing
from dolmen.store import Blob, BlobInfo, Remove, Write
from dolmen.stores.base import get_any, write_any

BATCH = 1_000
"""Copies looked at together."""


@dataclass(slots=True)
class Dropped:
    """What became of the misplaced copies of one server."""

    removed: int = 0
    bytes: int = 0
    """Bytes of data in what was removed."""
    kept: int = 0
    """Copies that stay until every rightful server has a sound one."""
    failing: dict[str, str] = field(default_factory=dict)
    """Rightful servers that could not be asked, and what they said."""


async def drop_misplaced(
    member: Member,
    placement: Placement,
    *,
    epoch: int | None,
    failing: Sequence[str],
    pace: Pace,
    damaged: bool = False,
    pause: Pause = asyncio.sleep,
) -> Dropped:
    """Remove from one server what it should not hold and all that should hold do.

    With `damaged` also copies that are quarantined, which may cost it a look at everything it
    has. Nothing that a server in `failing` (names) should hold is touched. Raises `Stopped` where
    the server can't be asked, and `Outdated` from it.
    """
    work = _Work(member, placement, epoch, frozenset(failing), pace, pause)
    if damaged:
        await work.replace_damaged()
    await work.whole()
    return work.dropped


@dataclass(slots=True)
class _Work:
    member: Member
    placement: Placement
    epoch: int | None
    failing: frozenset[str]
    pace: Pace
    pause: Pause
    dropped: Dropped = field(default_factory=Dropped)
    lacked: Counter[str] = field(default_factory=Counter)
    """How many of the copies asked for a rightful server turned out not to have, by its name."""

    async def replace_damaged(self) -> None:
        for name in await quarantined(self.member.name, self.member.store, self.pause):
            rightful = self.placement.of(partition_of(name)).rightful
            if self.member not in rightful:
                for each in rightful:
                    if each.name in self.failing or not each.store.capabilities.stamps:
                        continue
                    blob = await get_any(each.store, name)
                    if isinstance(blob, Blob):
                        await write_any(self.member.store, Write.copy(blob))

    async def whole(self) -> None:
        store = self.member.store
        held = await ask(store.digests, side="source", pause=self.pause)
        strays = [at for at in held.counts if self.member not in self.placement.of(at).rightful]
        if not strays:
            return
        batch: list[BlobInfo] = []
        stray = listing(store, strays, side="source", pause=self.pause)
        async with closing(stray) as infos:
            async for info in infos:
                batch.append(info)
                if len(batch) == BATCH:
                    await self._drop(batch)
                    batch = []
        await self._drop(batch)

    async def _drop(self, batch: Sequence[BlobInfo]) -> None:
        """Remove those of a batch that every rightful server turns out to hold."""
        sound: set[str] = set()
        asked: dict[str, tuple[Member, list[BlobInfo]]] = {}
        for info in batch:
            place = self.placement.of(partition_of(info.name))
            rightful = [*filter(place.group.counts, place.rightful)]
            # Fewer than its copies count where a server turned out not to be durable since.
            if len(rightful) < place.group.copies or any(
                self._fails(each, info) for each in rightful
            ):
                continue
            sound.add(info.name)  # until one of those asked says otherwise
            for each in rightful:
                asked.setdefault(each.name, (each, []))[1].append(info)
        # Who lacked most so far comes first: nobody reads what will stay for want of another.
        for name in sorted(asked, key=lambda name: -self.lacked[name]):
            each, infos = asked[name]
            infos = [info for info in infos if info.name in sound]
            lacking = await self._lacking(each, infos) if infos else set()
            self.lacked[name] += len(lacking)
            sound -= lacking
        removes = [Remove(info.name, info.stamp) for info in batch if info.name in sound]
        if removes:
            removed = await ask(
                lambda: self.member.store.remove_many(removes, epoch=self.epoch),
                side="destination",
                pause=self.pause,
            )
            gone = {name for (name, _), went in zip(removes, removed, strict=True) if went}
            self.dropped.removed += len(gone)
            self.dropped.bytes += sum(info.size for info in batch if info.name in gone)
        self.dropped.kept += len(batch) - len(sound)

    def _fails(self, rightful: Member, info: BlobInfo) -> bool:
        """Whether a server can't vouch for a copy, and need not read anything to say so."""
        if rightful.name in self.failing or rightful.name in self.dropped.failing:
            return True
        return info.stamp > 0 and not rightful.store.capabilities.stamps

    async def _lacking(self, rightful: Member, infos: Sequence[BlobInfo]) -> set[str]:
        """The names of which a server has no sound copy of this rank or a higher one."""
        wanted = {info.name: info for info in infos}
        if wait := self.pace.delay(sum(info.size for info in infos)):
            await self.pause(wait)
        lacking = set(wanted)
        try:
            async with closing(rightful.store.verify_many([*wanted])) as answers:
                async for found in answers:
                    if isinstance(found, BlobInfo) and found.rank >= wanted[found.name].rank:
                        lacking.discard(found.name)
        except DolmenError as error:  # what it did not vouch for stays
            self.dropped.failing[rightful.name] = str(error)
        return lacking
