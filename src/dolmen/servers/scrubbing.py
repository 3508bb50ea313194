"""Scrubbing beside a server: a companion that reads its volume through, again and again.

It opens the volume by itself, at the lowest priority, and says how far it is in a line of
JSON: the fields of `dolmen.stores.scrub.Scrub`, totals since it began, copies in quarantine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import uvloop

from dolmen import config
from dolmen.closing import closing
from dolmen.companion import order, say
from dolmen.errors import DolmenError
from dolmen.pace import Pace, give_way
from dolmen.servers.metrics import Figure
from dolmen.store import BlobStore, Listing
from dolmen.stores import open_store
from dolmen.stores.scrub import Scrub, scrub, scrub_in
from dolmen.stores.volume import path_of

_log = logging.getLogger("dolmen.scrub")
_AGAIN = 60.0
"""Seconds before it tries again where the volume could not be opened or read."""
_LONGEST = 3_600.0
"""Seconds it waits at most before it looks whether a scrub is due."""


class Scrubbing:
    """The companion, as `dolmen.servers.running` starts it, for a volume's URL."""

    module = __name__

    def __init__(self, url: str, settings: config.Scrub) -> None:
        self._path = path_of(url)
        self.order = json.dumps({"url": url} | settings.model_dump())

    def figures(self, said: str) -> Iterator[Figure]:
        """Its metrics."""
        told: dict[str, Any] = json.loads(said) if said else {}
        at = "volume", self._path
        for what, text in (
            ("checked", "Copies read to their end."),
            ("bytes", "Bytes in copies read."),
            ("failed", "Copies found damaged."),
        ):
            total = told.get(f"total_{what}", 0)
            yield Figure("counter", f"dolmen_scrub_{what}", text, *at, total)
        text = "Share of the present scrub."
        yield Figure("gauge", "dolmen_scrub_progress", text, *at, told.get("done", 0))
        text = "When the last complete scrub ended, in seconds since 1970; 0: never."
        name = "dolmen_scrub_last_complete_seconds"
        yield Figure("gauge", name, text, *at, told.get("last") or 0)
        text = "Copies known to be damaged when last counted."
        yield Figure("gauge", "dolmen_quarantined_copies", text, *at, told.get("quarantined", 0))


def main() -> None:
    """Scrub the volume it is told of, until standard input ends."""
    told = json.loads(order())
    give_way()
    with suppress(asyncio.CancelledError):
        uvloop.run(_until_input_ends(**told))


async def _until_input_ends(url: str, bandwidth: int | None, every_days: float) -> None:
    task = asyncio.ensure_future(_go_on(url, Pace(bandwidth), every_days * 86_400))
    asyncio.get_running_loop().add_reader(0, task.cancel)
    await task


async def _go_on(url: str, pace: Pace, every: float) -> None:
    told = _Told()
    while True:
        try:
            store = await open_store(url)
            try:
                wait = await _due(store, every)
                if not wait:
                    await _through(store, pace, told)
                await told.count_quarantined(store)
                told.say(scrub_in(await store.notes()))
            finally:
                await store.aclose()
        except DolmenError as error:
            say(f"!{error}")
            wait = _AGAIN
        await asyncio.sleep(min(wait, _LONGEST))


class _Told:
    """What is said of how far it is."""

    def __init__(self) -> None:
        self.total_checked = self.total_bytes = self.total_failed = self.quarantined = 0

    async def count_quarantined(self, store: BlobStore) -> None:
        """Reads the whole index, so not often."""
        self.quarantined = 0
        async with closing(store.list(Listing(quarantined=True))) as infos:
            async for _ in infos:
                self.quarantined += 1

    def say(self, known: Scrub | None) -> None:
        """A line of JSON."""
        said: dict[str, object] = asdict(known) | {"done": known.done} if known else {}
        say(json.dumps(said | vars(self)))


async def _due(store: BlobStore, every: float) -> float:
    """The seconds until a scrub should begin; 0 where one was broken off."""
    known = scrub_in(await store.notes())
    if known is None or known.ended is None:
        return 0.0
    since = time.time() - known.ended
    return every - since if 0 <= since < every else 0.0  # below: the clock was wrong then


async def _through(store: BlobStore, pace: Pace, told: _Told) -> None:
    spoken = checked = size = 0.0
    known = scrub_in(await store.notes())
    if known is not None and known.ended is None:
        checked, size = known.checked, known.bytes
    async with closing(scrub(store, pace=pace)) as batches:
        async for now, damaged in batches:
            told.total_checked += int(now.checked - checked)
            told.total_bytes += int(now.bytes - size)
            told.total_failed += len(damaged)
            told.quarantined += len(damaged)
            checked, size = now.checked, now.bytes
            for failed in damaged:
                _log.error("scrub: %s", failed.error)
            if time.monotonic() - spoken >= 2:
                spoken = time.monotonic()
                told.say(now)
