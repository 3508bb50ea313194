"""Repair without end: a round after the other, with less and less asked of servers that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from dolmen.replication.patience import Pause
from dolmen.replication.repair import Repair, Round

PAUSE = 10.0
"""Seconds between the end of a round and the next."""
LONGEST = 300.0
"""Seconds after which a failing server is asked again at the latest."""


async def watch(
    repair: Repair, *, now: Callable[[], float] = time.monotonic, pause: Pause = asyncio.sleep
) -> AsyncGenerator[Round, None]:
    """The report of every round, for as long as it is read. Raises `Outdated`.

    A server that failed is left out of the rounds for a while, twice as long after each
    failure in a row, so that it does not hold up the others.
    """
    failures: dict[str, int] = {}
    back: dict[str, tuple[float, str]] = {}
    while True:
        out = {
            name: f"{why} (asked again in {until - now():.0f} s)"
            for name, (until, why) in back.items()
            if until > now()
        }
        report = await repair.round(out)
        for name in repair.members:
            if name in out:
                continue
            why = report.failing.get(name)
            if why is None:
                failures.pop(name, None)
                back.pop(name, None)
                continue
            failures[name] = failures.get(name, 0) + 1
            back[name] = (now() + min(LONGEST, PAUSE * 2 ** (failures[name] - 1)), why)
        yield report
        await pause(PAUSE)
