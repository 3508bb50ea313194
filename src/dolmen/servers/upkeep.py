"""The upkeep of a volume by the server that has it open: compaction and scrub.

Both are tasks beside the requests: what they read is read and checked in threads, at most
the bandwidth that is set, and what they find is in the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from dolmen import config
from dolmen.closing import closing
from dolmen.errors import DolmenError
from dolmen.pace import Pace
from dolmen.servers.metrics import Figure
from dolmen.store import Listing
from dolmen.stores.scrub import Scrub, scrub, scrub_in
from dolmen.stores.volume import Volume
from dolmen.stores.volume.compaction import Compaction, Compactor, compaction_in

_log = logging.getLogger("dolmen.upkeep")
_EVERY = 60.0
"""Seconds from the end of a pass to the next, and before a scrub that failed is tried again."""
_LONGEST = 3_600.0
"""Seconds it waits at most before it looks whether a scrub is due."""


class Upkeep:
    """Compacts and scrubs one open volume until `aclose`. Made on the event loop."""

    def __init__(self, volume: Volume, settings: config.Settings) -> None:
        self._volume = volume
        self._compactor = Compactor(volume, pace=Pace(settings.compaction.bandwidth))
        self._compaction, self._scrub = Compaction(), Scrub()
        self._checked = self._bytes = self._failed = self._quarantined = 0
        jobs: list[Callable[[], Awaitable[float]]] = [self._compact]
        if settings.scrub.every_days:
            self._every = settings.scrub.every_days * 86_400
            self._pace = Pace(settings.scrub.bandwidth)
            jobs.append(self._scrub_when_due)
        self._tasks = [asyncio.create_task(_again_and_again(job)) for job in jobs]

    async def aclose(self) -> None:
        """Leave off; what was begun goes on when the volume is served next."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def figures(self) -> Iterator[Figure]:
        """Its metrics."""
        at = "volume", self._volume.path
        known, scrubbed = self._compaction, self._scrub
        when = "in seconds since 1970; 0: never."
        for name, text, value in (
            ("compaction_reclaimed_bytes", "Reclaimed space.", known.reclaimed),
            ("scrub_checked", "Copies read to their end.", self._checked),
            ("scrub_bytes", "Bytes in copies read.", self._bytes),
            ("scrub_failed", "Copies found damaged.", self._failed),
        ):
            yield Figure("counter", f"dolmen_{name}", text, *at, value)
        for name, text, seen in (
            ("compaction_last_complete_seconds", f"When it last ended, {when}", known.looked or 0),
            ("compaction_failing", "1 when the last pass failed.", bool(known.failing)),
            ("volume_reclaimable_bytes", "Dead bytes on disk.", known.reclaimable),
            ("scrub_progress", "Share of the present scrub.", scrubbed.done),
            ("scrub_last_complete_seconds", f"When it last ended, {when}", scrubbed.last or 0),
            ("quarantined_copies", "Damaged copies when last counted.", self._quarantined),
        ):
            yield Figure("gauge", f"dolmen_{name}", text, *at, seen)

    async def _compact(self) -> float:
        try:
            await self._compactor.compact()
        finally:
            self._compaction = compaction_in(await self._volume.notes()) or Compaction()
        return _EVERY

    async def _scrub_when_due(self) -> float:
        known = scrub_in(await self._volume.notes()) or Scrub()
        self._scrub = known
        since = time.time() - known.ended if known.ended is not None else self._every
        if 0 <= since < self._every:  # below: the clock was wrong then
            return min(self._every - since, _LONGEST)
        before = known if known.ended is None else Scrub()
        checked, size = before.checked, before.bytes
        async with closing(scrub(self._volume, pace=self._pace)) as batches:
            async for now, damaged in batches:
                self._checked += now.checked - checked
                self._bytes += now.bytes - size
                self._failed += len(damaged)
                checked, size, self._scrub = now.checked, now.bytes, now
                for failed in damaged:
                    _log.error("scrub: %s", failed.error)
        self._quarantined = 0
        async with closing(self._volume.list(Listing(quarantined=True))) as infos:
            async for _ in infos:
                self._quarantined += 1
        return min(self._every, _LONGEST)


async def _again_and_again(job: Callable[[], Awaitable[float]]) -> None:
    """Do a job, and again after the seconds it says; one that fails is tried again."""
    with suppress(asyncio.CancelledError):
        while True:
            try:
                wait = await job()
            except DolmenError as error:
                _log.error("%s", error)
                wait = _EVERY
            await asyncio.sleep(wait)
