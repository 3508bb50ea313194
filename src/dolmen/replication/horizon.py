"""Forgetting deletes: tombstones go once no server can bring back what they deleted.

Every store notes its *horizon*: the stamp up to which tombstones are gone from it.
Three rules keep a delete from being undone by its being forgotten:

- A tombstone goes only when every server of every group was asked, and none holds
  anything else under its name; the horizon is noted on all of them before the first goes.
- A tombstone at or below a store's horizon is not copied to it again, unless it holds
  something there that the tombstone would delete.
- A store with a lower horizon than another was away while deletes were forgotten. What it
  holds from below the other's horizon, and the other lacks, may have been deleted: it
  is not copied from there, unless a person says so (`rejoin`). A store that holds nothing from
  below it is brought up to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from dolmen.closing import closing
from dolmen.errors import Outdated
from dolmen.record import Kind
from dolmen.replication.patience import Pause, Stopped, ask, listing
from dolmen.replication.side_by_side import naming, side_by_side
from dolmen.stamps import COUNTER_BITS, format_stamp
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Remove
from dolmen.stores.horizon import HORIZON, NO_HORIZONS, Horizons, horizon_in

T = TypeVar("T")
_RECLAIMED = "reclaimed"
_BATCH = 1_000
DOUBTFUL = Outdated(
    "where it comes from missed deletes that were forgotten since, and this may be one of them; "
    "run with --rejoin to have it back, or leave it"
)
OFTEN = 30
"""Deletes are forgotten in so many steps of the time for which they are remembered."""


async def horizons_of(
    source: BlobStore, destination: BlobStore, pause: Pause, *, rejoin: bool = False
) -> Horizons:
    """Ask both; a store that keeps no stamps keeps no tombstones either."""
    if not (source.capabilities.stamps and destination.capabilities.stamps):
        return NO_HORIZONS
    ours = horizon_in(await ask(source.notes, side="source", pause=pause))
    theirs = horizon_in(await ask(destination.notes, side="destination", pause=pause))
    return Horizons(ours, theirs, rejoin)


async def catch_up(stores: Mapping[str, BlobStore], *, pause: Pause) -> dict[str, str]:
    """Raise the horizon of every store that holds nothing from below that of the others.

    One that is new, or was emptied, holds nothing that a forgotten delete deleted. Its horizon
    stands before it is filled, so that it gets nothing doubtful, from whomever, and is believed
    about what it got. Returns the stores that failed, and what they said.
    """
    horizons: dict[str, int] = {}
    failing: dict[str, str] = {}

    async def learn(name: str) -> None:
        horizons[name] = horizon_in(await ask(stores[name].notes, side="source", pause=pause))

    async def raise_it(name: str) -> None:
        if horizons[name] < known and not await _holds_from_below(stores[name], known, pause):
            note = partial(stores[name].note, HORIZON, format_stamp(known).encode())
            await ask(note, side="destination", pause=pause)

    async def each(names: Sequence[str], step: Callable[[str], Awaitable[None]]) -> None:
        for name in names:
            try:
                await step(name)
            except Stopped as stopped:
                failing[name] = str(stopped)

    await each([name for name in stores if stores[name].capabilities.stamps], learn)
    known = max(horizons.values(), default=0)
    await each([*horizons], raise_it)
    return failing


async def _holds_from_below(store: BlobStore, horizon: int, pause: Pause) -> bool:
    async with closing(listing(store, ALL_PARTITIONS, side="source", pause=pause)) as infos:
        async for info in infos:
            if info.stamp <= horizon and info.kind != Kind.TOMBSTONE:
                return True
    return False


async def reclaim(
    stores: Mapping[str, BlobStore], *, age_ms: int, now_ms: int, epoch: int | None, pause: Pause
) -> int:
    """Forget the deletes that are older than `age_ms`; returns how many tombstones went.

    To be called when a comparison of all these stores, and they are all there are, has
    just found everything everywhere. Does nothing unless a fair part of that age has gone by
    since the last time, or that was broken off. Raises `Stopped`, which says who failed.
    """
    work = _Reclaiming(stores, epoch, pause)
    notes = await work.each(lambda store: store.notes())
    known = max(map(horizon_in, notes))
    oldest = min(horizon_in(each) for each in notes)
    done = min(horizon_in(each, _RECLAIMED) for each in notes)
    until = max(0, now_ms - age_ms) << COUNTER_BITS
    if until - known < (age_ms // OFTEN) << COUNTER_BITS:
        until = known
    if oldest == done == until:
        return 0
    if until > known:
        until = max(known, await work.agreed(until))
    noted = format_stamp(until).encode()
    await work.each(lambda store: store.note(HORIZON, noted))
    gone = await work.sweep(until)
    await work.each(lambda store: store.note(_RECLAIMED, noted))
    return gone


class _Reclaiming:
    """One pass over all stores."""

    def __init__(self, stores: Mapping[str, BlobStore], epoch: int | None, pause: Pause) -> None:
        self._stores, self._epoch, self._pause = stores, epoch, pause

    async def each(self, question: Callable[[BlobStore], Awaitable[T]]) -> Sequence[T]:
        """Ask every store, one after the other."""
        answers = []
        for name, store in self._stores.items():
            with naming(name):
                answers.append(
                    await ask(partial(question, store), side="destination", pause=self._pause)
                )
        return answers

    async def agreed(self, until: int) -> int:
        """The stamp, at most this one, up to which every store knows of every delete."""
        async with closing(side_by_side(self._stores, pause=self._pause)) as names:
            async for held in names:
                infos = [*held.values()]
                best = max(infos, key=lambda info: info.rank)
                if best.kind == Kind.TOMBSTONE and best.stamp <= until and not _agree(infos):
                    until = best.stamp - 1
        return until

    async def sweep(self, until: int) -> int:
        """Remove the tombstones up to a horizon."""
        gone = 0
        batch: list[Remove] = []
        async with closing(side_by_side(self._stores, pause=self._pause)) as names:
            async for held in names:
                infos = [*held.values()]
                info = infos[0]
                if info.kind == Kind.TOMBSTONE and info.stamp <= until and _agree(infos):
                    batch.append(Remove(info.name, info.stamp))
                if len(batch) == _BATCH:
                    gone += await self._remove(batch)
                    batch = []
        return gone + await self._remove(batch)

    async def _remove(self, batch: Sequence[Remove]) -> int:
        if not batch:
            return 0
        removed = await self.each(lambda store: store.remove_many(batch, epoch=self._epoch))
        return sum(map(any, zip(*removed, strict=True)))


def _agree(infos: Sequence[BlobInfo]) -> bool:
    return all(info.rank == infos[0].rank for info in infos)
