"""Purging: old tombstones are forgotten, and what they deleted stays deleted.

A purge has a stamp. It goes in this order, and may be broken off anywhere:

1. Every server of every group takes part: it answered this round, is in sync and not stale.
   Each notes the purge's stamp as its watermark.
2. After `SETTLE` seconds all notes are read again, to be sure that no other purge overwrote them.
3. All servers are listed, side by side. A tombstone is old enough when its stamp is; it goes
   only if no server has anything else under its name.
4. Before the first one is removed every server notes the stamp under `PURGED`.
5. Tombstones are removed where they have been for an hour. What stays on some is copied back to
   the others by the next round, and goes with the next purge.

A server whose watermark is lower than what another has purged missed a purge and is *stale*:
nothing is copied or read from it until it is emptied, or `rejoin` says that what it holds is
wanted. One that holds nothing from before that purge, an empty one above all, is given the
watermark before it is filled. Why no order of crashes, wiped
and restored disks and repairers at once undoes a delete: docs/decisions/2026-11-28-purge.md.

Read first: `dolmen.stores.watermark`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from dolmen.closing import closing
from dolmen.errors import BadSetting, Corrupt, Full, Outdated
from dolmen.record import Kind
from dolmen.replication.compare import listed
from dolmen.stamps import COUNTER_BITS, format_stamp
from dolmen.store import BlobStore, Listing, Remove
from dolmen.stores.retrying import Pause, ServerFailed
from dolmen.stores.watermark import PURGED, WATERMARK, purged_in, watermark_in

SETTLE = 10.0
"""Seconds in which a note that somebody decided to write has been written."""
MIN_AGE = 3_600.0
"""Seconds a tombstone has been on a server before it goes there: no copy of what it deletes is
under way for as long."""
OFTEN = 30
"""Purges in the time for which deletes are remembered."""
_BATCH = 1_000
MISSED = (
    "missed deletes that were forgotten since: it was out of the configuration, or its disk was "
    "set back. Empty it, or run dolmen rejoin to have back what it holds"
)


async def find_stale(stores: Mapping[str, BlobStore]) -> dict[str, str]:
    """Which of these servers missed a purge that another took part in, and what to do about it.

    One that holds nothing from before it is given the watermark instead. What was purged is noted
    on those that don't know it yet, so that it is not forgotten with the servers that do.
    """
    stale: dict[str, str] = {}
    marks: dict[str, tuple[int, int]] = {}
    for name, store in stores.items():
        if store.capabilities.stamps:
            try:
                noted = await store.notes()
                marks[name] = watermark_in(noted), purged_in(noted)
            except Corrupt as error:
                stale[name] = f"{name}: {error}; empty it and it will be filled"
    newest = max((purged for _, purged in marks.values()), default=0)
    for name, (watermark, purged) in marks.items():
        if watermark < newest and not await admitted(stores[name], newest):
            stale[name] = f"{name} {MISSED}"
        elif purged < newest:
            with suppress(ServerFailed, Full):  # one that takes no writes is given it later
                await stores[name].note(PURGED, format_stamp(newest).encode())
    return stale


async def check_pair(source: BlobStore, destination: BlobStore) -> None:
    """Raise `Outdated` if the source missed a purge of the destination's.

    A destination that is empty takes part in those of the source from now on.
    """
    if not (source.capabilities.stamps and destination.capabilities.stamps):
        return
    ours, theirs = await source.notes(), await destination.notes()
    if watermark_in(ours) < purged_in(theirs):
        raise Outdated(f"the source {MISSED}")
    if watermark_in(theirs) < purged_in(ours):
        await admitted(destination, purged_in(ours))


async def admitted(store: BlobStore, watermark: int) -> bool:
    """Whether a store holds nothing that a forgotten delete may be about; then it is given the
    watermark: it is empty, or was emptied and has only been written to since.
    """
    async with closing(store.list(Listing())) as infos:
        async for info in infos:
            if info.stamp <= watermark:
                return False
    await store.note(WATERMARK, format_stamp(watermark).encode())
    return True


async def rejoin(stores: Mapping[str, BlobStore], server: str) -> None:
    """Let a stale server's copies count again, deleted ones among them too.

    `stores` are all servers of the configuration. Raises `BadSetting` for an unknown server.
    """
    if server not in stores:
        raise BadSetting(
            f"there is no server {server!r}: the configuration has {', '.join(stores)}"
        )
    notes = [await each.notes() for each in stores.values() if each.capabilities.stamps]
    purged = max(map(purged_in, notes), default=0)
    if purged and watermark_in(await stores[server].notes()) < purged:
        await stores[server].note(WATERMARK, format_stamp(purged).encode())


async def purge(
    stores: Mapping[str, BlobStore],
    *,
    age_ms: int,
    now_ms: int,
    epoch: int | None = None,
    ready: Callable[[], Awaitable[None]] | None = None,
    pause: Pause = asyncio.sleep,
) -> int:
    """Forget the tombstones that are older than `age_ms`; returns how many went.

    `stores` are all servers of all groups, found in sync and not stale just now. Does nothing
    when the last purge was less than a fair part of that age ago. `ready` is awaited before
    each removal and may raise.
    """
    work = _Purge(stores, age_ms=age_ms, now_ms=now_ms, epoch=epoch, ready=ready)
    if not await work.agree((age_ms // OFTEN) << COUNTER_BITS):
        return 0
    await pause(SETTLE)
    return await work.sweep() if await work.agreed() else 0


class _Purge:
    def __init__(
        self,
        stores: Mapping[str, BlobStore],
        *,
        age_ms: int,
        now_ms: int,
        epoch: int | None,
        ready: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._stores, self._until = stores, max(0, now_ms - age_ms) << COUNTER_BITS
        self._young = now_ms / 1_000 - MIN_AGE
        self._epoch, self._ready = epoch, ready
        self._stamp, self._since, self._begun = 0, 0.0, False

    async def agree(self, step: int) -> bool:
        """Note the stamp of this purge on every server; False where it is not time for one."""
        notes = [await store.notes() for store in self._stores.values()]
        purged, newest = max(map(purged_in, notes)), max(map(watermark_in, notes))
        if 0 <= self._until - newest < step:
            return False
        # Above all others, also those that were broken off or have a time in the future.
        self._stamp = max(self._until, newest + 1)
        self._since = time.monotonic()
        for store in self._stores.values():
            if watermark_in(await store.notes()) < purged:
                return False  # it was set back just now
            await store.note(WATERMARK, format_stamp(self._stamp).encode())
        return True

    async def agreed(self) -> bool:
        """Whether every server still has the stamp."""
        notes = [await store.notes() for store in self._stores.values()]
        return all(watermark_in(each) >= self._stamp for each in notes)

    async def sweep(self) -> int:
        """Remove what all servers agree about; how many tombstones went."""
        gone = 0
        batch: list[Remove] = []
        async with closing(listed(self._stores)) as names:
            async for held in names:
                infos = [*held.values()]
                rank = infos[0].rank
                if rank.kind != Kind.TOMBSTONE or rank.stamp > self._until:
                    continue
                # Its age is looked at again where it goes, by that server's clock.
                if all(info.rank == rank and info.arrived <= self._young for info in infos):
                    batch.append(Remove(infos[0].name, rank.stamp))
                if len(batch) == _BATCH:
                    gone += await self._remove(batch)
                    batch = []
        return gone + await self._remove(batch)

    async def _remove(self, batch: Sequence[Remove]) -> int:
        if not batch:
            return 0
        if self._ready:
            await self._ready()
        if not self._begun:
            for store in self._stores.values():
                await store.note(PURGED, format_stamp(self._stamp).encode())
            self._begun = True
        # An hour before the watermark was noted: every disk with that watermark had it.
        age = MIN_AGE + time.monotonic() - self._since
        removed = [
            await store.remove_many(batch, min_age=age, epoch=self._epoch)
            for store in self._stores.values()
        ]
        return sum(map(any, zip(*removed, strict=True)))
