"""Forgetting deletes: tombstones go once no server can bring back what they deleted.

Every store notes its *horizon*: the stamp up to which tombstones are gone from it.
Three rules keep a delete from being undone by its being forgotten:

- A tombstone goes only when every server of every group was asked, and none holds
  anything else under its name; the horizon is noted on all of them before the first goes.
- A tombstone at or below a store's horizon is not copied to it again, unless it holds
  something there that the tombstone would delete.
- A store with a lower horizon than another was away while deletes were forgotten. What it
  holds from below the other's horizon, and the other lacks, may have been deleted: it
  is not copied from there, unless a person says so (`rejoin`).
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.replication.patience import Pause, ask, listing
from dolmen.stamps import COUNTER_BITS, format_stamp, parse_stamp
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Remove

_HORIZON, _RECLAIMED = "horizon", "reclaimed"
_BATCH = 1_000
OFTEN = 30
"""Deletes are forgotten in so many steps of the time for which they are remembered."""


def horizon_in(notes: Mapping[str, bytes], key: str = _HORIZON) -> int:
    """A store's horizon, from its notes: a stamp, 0 where nothing was ever forgotten."""
    noted = notes.get(key)
    return parse_stamp(noted.decode()) if noted else 0


class Horizons(NamedTuple):
    """Those of the two stores of a run; `rejoin` has the source believed all the same."""

    source: int = 0
    destination: int = 0
    rejoin: bool = False

    def forgotten(self, info: BlobInfo) -> bool:
        """Whether the destination, which has nothing under the name, forgot this tombstone."""
        return info.kind == Kind.TOMBSTONE and info.stamp <= self.destination

    def doubtful(self, info: BlobInfo) -> bool:
        """Whether this, which the destination lacks, may have been deleted there."""
        return (
            info.kind != Kind.TOMBSTONE
            and self.source < self.destination >= info.stamp
            and not self.rejoin
        )


NO_HORIZONS = Horizons()


async def horizons_of(
    source: BlobStore, destination: BlobStore, pause: Pause, *, rejoin: bool = False
) -> Horizons:
    """Ask both; a store that keeps no stamps keeps no tombstones either."""
    if not (source.capabilities.stamps and destination.capabilities.stamps):
        return NO_HORIZONS
    ours = horizon_in(await ask(source.notes, side="source", pause=pause))
    theirs = horizon_in(await ask(destination.notes, side="destination", pause=pause))
    return Horizons(ours, theirs, rejoin)


async def reclaim(
    stores: Sequence[BlobStore], *, age_ms: int, now_ms: int, epoch: int | None, pause: Pause
) -> int:
    """Forget the deletes that are older than `age_ms`; returns how many tombstones went.

    To be called when a comparison of all these stores, and they are all there are, has
    just found everything everywhere. Does nothing unless a fair part of that age has gone by
    since the last time, or that was broken off. Raises `Stopped`, or what removing raises.
    """
    notes = [await ask(store.notes, side="destination", pause=pause) for store in stores]
    known = max(map(horizon_in, notes))
    oldest = min(horizon_in(each) for each in notes)
    done = min(horizon_in(each, _RECLAIMED) for each in notes)
    until = max(0, now_ms - age_ms) << COUNTER_BITS
    if until - known < (age_ms // OFTEN) << COUNTER_BITS:
        until = known
    if oldest == done == until:
        return 0
    if until > known:
        async for infos in _side_by_side(stores, pause):
            best = max(infos, key=lambda info: info.rank)
            if best.kind == Kind.TOMBSTONE and best.stamp <= until and not _agree(infos):
                until = best.stamp - 1  # somebody has yet to learn of it
        until = max(until, known)
    for store in stores:
        await store.note(_HORIZON, format_stamp(until).encode())
    gone = await _sweep(stores, until, epoch, pause)
    for store in stores:
        await store.note(_RECLAIMED, format_stamp(until).encode())
    return gone


async def _sweep(stores: Sequence[BlobStore], until: int, epoch: int | None, pause: Pause) -> int:
    """Remove the tombstones up to a horizon, each from every store before the next."""
    gone = 0
    batch: list[Remove] = []
    async for infos in _side_by_side(stores, pause):
        info = infos[0]
        if info.kind == Kind.TOMBSTONE and info.stamp <= until and _agree(infos):
            batch.append(Remove(info.name, info.stamp))
        if len(batch) == _BATCH:
            gone += await _remove(stores, batch, epoch)
            batch = []
    return gone + await _remove(stores, batch, epoch)


async def _remove(stores: Sequence[BlobStore], batch: Sequence[Remove], epoch: int | None) -> int:
    if not batch:
        return 0
    removed = [await store.remove_many(batch, epoch=epoch) for store in stores]
    return sum(map(any, zip(*removed, strict=True)))


def _agree(infos: Sequence[BlobInfo]) -> bool:
    return all(info.rank == infos[0].rank for info in infos)


async def _side_by_side(
    stores: Sequence[BlobStore], pause: Pause
) -> AsyncIterator[Sequence[BlobInfo]]:
    """For every name what each store has of it, in list order."""
    async with AsyncExitStack() as stack:
        listings = [
            await stack.enter_async_context(
                closing(listing(store, ALL_PARTITIONS, side="source", pause=pause))
            )
            for store in stores
        ]
        heap: list[tuple[int, str, int, BlobInfo]] = []

        async def advance(which: int) -> None:
            info = await anext(listings[which], None)
            if info is not None:
                heapq.heappush(heap, (partition_of(info.name), info.name, which, info))

        for which in range(len(listings)):
            await advance(which)
        while heap:
            name = heap[0][1]
            infos = []
            while heap and heap[0][1] == name:
                _, _, which, info = heapq.heappop(heap)
                infos.append(info)
                await advance(which)
            yield infos
