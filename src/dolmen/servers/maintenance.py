"""Maintenance of a volume that a server has open: compaction and scrub, in the background.

Both run on the server's event loop, in small steps whose reading and hashing happens in threads,
and within a bandwidth: requests come first. Errors are logged when they change, and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

from dolmen import config
from dolmen.closing import closing
from dolmen.errors import DolmenError
from dolmen.pace import Pace
from dolmen.repeating import Repeating
from dolmen.servers.metrics import Figure
from dolmen.store import Listing
from dolmen.stores.scrub import Scrub, scrub, scrub_in
from dolmen.stores.volume import Volume
from dolmen.stores.volume.compaction import Compaction, Compactor, compaction_in

_COMPACT_EVERY = 60.0
"""Seconds from the end of one compaction to the next."""
_SCRUB_LOOK = 3_600.0
"""Seconds at most between two looks whether a scrub is due."""
_AGAIN = 60.0
"""Seconds before work that failed is tried again."""
_FIGURES: Sequence[tuple[Literal["counter", "gauge"], str, str]] = (
    ("counter", "scrub_checked", "Copies read and verified by the current scrub."),
    ("counter", "scrub_bytes", "Bytes in copies read and verified by the current scrub."),
    ("counter", "scrub_failed", "Copies the current scrub found damaged."),
    ("gauge", "scrub_progress", "Share of the current scrub."),
    (
        "gauge",
        "scrub_last_complete_seconds",
        "When the last complete scrub ended, in seconds since 1970; 0: never.",
    ),
    ("gauge", "quarantined_copies", "Copies known to be damaged when last counted."),
    ("counter", "compaction_reclaimed_bytes", "Disk space reclaimed."),
    (
        "gauge",
        "compaction_last_complete_seconds",
        "When compaction last looked at everything, in seconds since 1970; 0: never.",
    ),
    ("gauge", "compaction_failing", "1 when the last pass failed."),
    ("gauge", "volume_reclaimable_bytes", "Dead bytes on disk."),
)
_log = logging.getLogger("dolmen.maintenance")


class Maintenance:
    """Keeps one open volume. Made on the event loop; close it before the volume."""

    def __init__(self, volume: Volume, settings: config.Settings) -> None:
        self._volume, self._settings = volume, settings
        self._scrub: Scrub | None = None
        self._quarantined = 0
        self._compaction = Compaction()
        self._compactor = Compactor(volume, pace=Pace(settings.compaction.bandwidth))
        self._said: dict[str, str] = {}
        self._repeating = [Repeating(partial(self._try, "compaction", self._compact))]
        if settings.scrub.every_days:
            self._repeating.append(Repeating(partial(self._try, "scrub", self._scrub_when_due)))

    def figures(self) -> Iterator[Figure]:
        """Its metrics."""
        scrubbed, compaction = self._scrub or Scrub(), self._compaction
        reclaimed = compaction.reclaimed + self._compactor.done.reclaimed
        values = (
            scrubbed.checked, scrubbed.bytes, scrubbed.failed, scrubbed.done, scrubbed.last or 0,
            self._quarantined,
            reclaimed, compaction.looked or 0, bool(compaction.failing), compaction.reclaimable,
        )  # fmt: skip
        for (kind, name, text), value in zip(_FIGURES, values, strict=True):
            yield Figure(kind, f"dolmen_{name}", text, "volume", self._volume.path, float(value))

    async def aclose(self) -> None:
        """Stop. A pass that was under way is done again by the next."""
        await asyncio.gather(*(each.aclose() for each in self._repeating))

    async def _try(self, what: str, work: Callable[[], Awaitable[float]]) -> float:
        """Work, and say what fails unless that was said last."""
        try:
            wait = await work()
        except (DolmenError, OSError) as error:
            if str(error) != self._said.get(what):
                self._said[what] = str(error)
                _log.error("%s of %s: %s", what, self._volume.path, error)
            return _AGAIN
        self._said.pop(what, None)
        return wait

    async def _compact(self) -> float:
        try:
            await self._compactor.compact()
        finally:
            with suppress(DolmenError):
                known = compaction_in(await self._volume.notes())
                self._compaction = known or Compaction()
        return _COMPACT_EVERY

    async def _scrub_when_due(self) -> float:
        every = self._settings.scrub.every_days * 86_400
        known = self._scrub = scrub_in(await self._volume.notes())
        await self._count_quarantined()
        if known is not None and known.ended is not None:
            since = time.time() - known.ended
            if 0 <= since < every:  # below: the clock was wrong then
                return min(every - since, _SCRUB_LOOK)
        pace = Pace(self._settings.scrub.bandwidth)
        async with closing(scrub(self._volume, pace=pace)) as batches:
            async for self._scrub, damaged in batches:
                for each in damaged:
                    _log.error("scrub of %s: %s", self._volume.path, each.error)
        await self._count_quarantined()
        return min(every, _SCRUB_LOOK)

    async def _count_quarantined(self) -> None:
        """Reads the whole index, so not often."""
        count = 0
        async with closing(self._volume.list(Listing(quarantined=True))) as infos:
            async for _ in infos:
                count += 1
        self._quarantined = count
