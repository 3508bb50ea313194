"""Dropping misplaced copies: what is on a server that should not hold it.

It got there because a rightful server could not be written to, or because servers joined, left
or changed their weight. It goes by `remove`, without a tombstone, once every durable server that
should hold the name has read its own copy to the end, found it sound, and has it at no lower
rank. Where one has not, or there is none, the copy stays.

A damaged copy is in no listing, and would answer as damaged for good where it should not be. It
is replaced by what the rightful servers have, and then goes like any other.

Read first: `dolmen.cluster.placement`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Placement
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.replication.group import strays
from dolmen.replication.report import Dropped
from dolmen.store import Blob, BlobInfo, Listing, Remove, Write
from dolmen.stores.base import get_any, in_batches, write_any
from dolmen.stores.retrying import Retrying

BATCH = 1_000
"""Copies looked at together."""


@dataclass(slots=True)
class Dropping:
    """Work on one server. `stores` are those that can be relied on, by name; the rest vouch for
    nothing. `ready` is awaited before each removal and may raise.
    """

    member: Member
    placement: Placement
    stores: Mapping[str, Retrying]
    epoch: int | None
    pace: Pace
    ready: Callable[[], Awaitable[None]]
    dropped: Dropped = field(default_factory=Dropped)
    lacked: Counter[str] = field(default_factory=Counter)
    """How many of the copies asked for a rightful server turned out not to have, by its name."""

    async def replace_damaged(self) -> None:
        """Replace damaged misplaced copies, which may cost the server a look at everything."""
        store = self.stores[self.member.name]
        async with closing(store.list(Listing(quarantined=True))) as infos:
            names = [info.name async for info in infos]
        for name in names:
            rightful = self.placement.of(partition_of(name)).rightful
            for each in () if self.member in rightful else rightful:
                if each.name in self.stores and each.store.capabilities.stamps:
                    blob = await get_any(self.stores[each.name], name)
                    if isinstance(blob, Blob):
                        await write_any(store, Write.copy(blob))

    async def drop(self) -> None:
        """Remove what the server should not hold and all that should hold do.

        Raises `ServerFailed` where a server can't be asked, `Outdated` where it refuses.
        """
        store = self.stores[self.member.name]
        misplaced = strays(self.placement, self.member, await store.digests())
        if misplaced:
            async with (
                closing(store.list(Listing(misplaced, tombstones=True))) as infos,
                closing(in_batches(infos, BATCH)) as batches,
            ):
                async for batch in batches:
                    await self._drop(store, batch)

    async def _drop(self, store: Retrying, batch: Sequence[BlobInfo]) -> None:
        sound = await self._sound(batch)
        self.dropped.kept += len(batch) - len(sound)
        if sound:
            await self.ready()
            removes = [Remove(info.name, info.stamp) for info in sound]
            removed = await store.remove_many(removes, epoch=self.epoch)
            self.dropped.removed += sum(removed)
            self.dropped.bytes += sum(
                info.size for info, went in zip(sound, removed, strict=True) if went
            )

    async def _sound(self, batch: Sequence[BlobInfo]) -> Sequence[BlobInfo]:
        """Those of a batch of which every rightful server has a sound copy."""
        sound: dict[str, BlobInfo] = {}
        asked: dict[str, list[str]] = {}
        for info in batch:
            place = self.placement.of(partition_of(info.name))
            rightful = [*filter(place.group.counts, place.rightful)]
            # Fewer than its copies count where a server turned out not to be durable since.
            if len(rightful) < place.group.copies or not all(
                each.name in self.stores and (info.stamp == 0 or each.store.capabilities.stamps)
                for each in rightful
            ):
                continue
            sound[info.name] = info  # until one of those asked says otherwise
            for each in rightful:
                asked.setdefault(each.name, []).append(info.name)
        # Who lacked most so far comes first: nobody reads what will stay for want of another.
        for server in sorted(asked, key=lambda name: -self.lacked[name]):
            names = [name for name in asked[server] if name in sound]
            lacking = await self._lacking(server, [sound[name] for name in names])
            self.lacked[server] += len(lacking)
            for name in lacking:
                del sound[name]
        return [*sound.values()]

    async def _lacking(self, server: str, infos: Sequence[BlobInfo]) -> set[str]:
        """The names of which a server has no sound copy of this rank or a higher one."""
        wanted = {info.name: info for info in infos}
        store, lacking = self.stores[server], set(wanted)
        if wait := self.pace.delay(sum(info.size for info in infos)):
            await store.pause(wait)
        async with closing(store.verify_many([*wanted])) as answers:
            async for found in answers:
                if isinstance(found, BlobInfo) and found.rank >= wanted[found.name].rank:
                    lacking.discard(found.name)
        return lacking
