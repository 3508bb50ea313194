"""Purging: old tombstones are forgotten, and what they deleted stays deleted.

A purge has a stamp. It goes in this order, and may be broken off anywhere:

1. Every server of every group takes part: it answered this round, is in sync and not stale.
   Each notes the purge's stamp as its watermark.
2. After `SETTLE` seconds all servers are listed, side by side. A tombstone is old enough when its
   stamp is; it goes only if no server has anything else under its name.
3. Before the first one is removed every server notes the stamp under `PURGED`, after its notes
   were read again: no other purge overwrote the watermark, and no older disk took its place.
4. Tombstones are removed where they have been for an hour. What stays on some is copied back to
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
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from dolmen.closing import closing
from dolmen.errors import BadSetting, Full, Outdated
from dolmen.record import Kind
from dolmen.replication.compare import listed
from dolmen.stamps import COUNTER_BITS, format_stamp
from dolmen.store import BlobInfo, BlobStore, Listing, Remove
from dolmen.stores.base import in_batches
from dolmen.stores.retrying import Pause, ServerFailed
from dolmen.stores.watermark import PURGED, WATERMARK, purged_in, watermark_in

SETTLE = 10.0
"""Seconds to wait behind writing the watermarks, so that a note that another process was about to
write has arrived."""
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
Notes = Mapping[str, bytes]


async def is_stale(store: BlobStore, noted: Notes, newest: int) -> bool:
    """Whether a store with these notes missed the newest purge that another took part in.

    One that holds nothing from before it is given the watermark instead. What was purged is noted
    where it is not known yet, so that it is not forgotten with the servers that do.
    """
    if watermark_in(noted) < newest and not await admitted(store, newest):
        return True
    if purged_in(noted) < newest:
        with suppress(ServerFailed, Full):  # one that takes no writes is given it later
            await store.note(PURGED, _value(newest))
    return False


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
    await store.note(WATERMARK, _value(watermark))
    return True


async def rejoin(stores: Mapping[str, BlobStore], server: str) -> None:
    """Let a stale server's copies count again, deleted ones among them too.

    `stores` are all servers of the configuration. Raises `BadSetting` for an unknown server.
    """
    if server not in stores:
        raise BadSetting(
            f"there is no server {server!r}: the configuration has {', '.join(stores)}"
        )
    notes = {n: await each.notes() for n, each in stores.items() if each.capabilities.stamps}
    purged = max(map(purged_in, notes.values()), default=0)
    if watermark_in(notes.get(server, {})) < purged:
        await stores[server].note(WATERMARK, _value(purged))


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
    until = max(0, now_ms - age_ms) << COUNTER_BITS
    since = time.monotonic()
    stamp = await _agree(stores, until, (age_ms // OFTEN) << COUNTER_BITS)
    if not stamp:
        return 0
    await pause(SETTLE)
    young, gone, begun = now_ms / 1_000 - MIN_AGE, 0, False

    def may_go(infos: list[BlobInfo]) -> bool:
        rank = infos[0].rank
        return (
            rank.kind == Kind.TOMBSTONE
            and rank.stamp <= until
            # Its age is looked at again where it goes, by that server's clock.
            and all(info.rank == rank and info.arrived <= young for info in infos)
        )

    async with closing(listed(stores)) as names:
        old = (infos[0] async for held in names if may_go(infos := [*held.values()]))
        async for batch in in_batches(old, _BATCH):
            if ready:
                await ready()
            if not begun:
                for store in stores.values():
                    if watermark_in(await store.notes()) < stamp:
                        return 0  # another purge wrote over it, or the server was set back
                for store in stores.values():
                    await store.note(PURGED, _value(stamp))
                begun = True
            # An hour before the watermark was noted: every disk with that watermark had it.
            age = MIN_AGE + time.monotonic() - since
            removes = [Remove(info.name, info.stamp) for info in batch]
            removed = [
                await store.remove_many(removes, min_age=age, epoch=epoch)
                for store in stores.values()
            ]
            gone += sum(map(any, zip(*removed, strict=True)))
    return gone


async def _agree(stores: Mapping[str, BlobStore], until: int, step: int) -> int:
    """Note the stamp of a new purge on every server; 0 where it is not time for one."""
    notes = [await store.notes() for store in stores.values()]
    purged, newest = max(map(purged_in, notes)), max(map(watermark_in, notes))
    if 0 <= until - newest < step:
        return 0
    # Above all others, also those that were broken off or have a time in the future.
    stamp = max(until, newest + 1)
    for store in stores.values():
        if watermark_in(await store.notes()) < purged:
            return 0  # it was set back just now
        await store.note(WATERMARK, _value(stamp))
    return stamp


def _value(stamp: int) -> bytes:
    return format_stamp(stamp).encode()
