"""Bring every server of a group to what the group holds together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from dolmen.replication.patience import Pause
from dolmen.replication.replicate import replicate
from dolmen.replication.report import Report
from dolmen.store import ALL_PARTITIONS, BlobStore

PairProgress = Callable[[str, str, Report], None]
"""Called with source, destination and the report so far."""


@dataclass(slots=True)
class GroupReport:
    """The reports of all runs, by source and destination."""

    runs: dict[tuple[str, str], Report] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    """Servers that failed, and what they said; runs that needed them were not begun."""

    @property
    def complete(self) -> bool:
        """Whether every server now holds everything that stood on any of them."""
        return not self.failing and all(report.complete for report in self.runs.values())


async def replicate_group(
    stores: Mapping[str, BlobStore],
    *,
    wanted: Mapping[str, Collection[int]] | None = None,
    progress: PairProgress | None = None,
    pause: Pause = asyncio.sleep,
) -> GroupReport:
    """Run every ordered pair of servers once, so each gets the newest of everything.

    One round is enough: whatever stands on any server goes from there to every
    other one directly, so a server that fails or refuses something stands in
    nobody else's way. Pairs that are in step cost a request to each side.

    `wanted` gives the partitions a server should hold, by its name; without it
    every server holds all. Any server may be the source, also of what it should
    no longer hold.
    """
    report = GroupReport()
    for target, destination in stores.items():
        partitions = wanted[target] if wanted is not None else ALL_PARTITIONS
        for origin, source in stores.items():
            if origin == target or {origin, target} & report.failing.keys():
                continue

            def notice(run: Report, pair: tuple[str, str] = (origin, target)) -> None:
                if progress:
                    progress(*pair, run)

            run = await replicate(
                source, destination, partitions=partitions, progress=notice, pause=pause
            )
            report.runs[origin, target] = run
            if run.stopped:
                report.failing[origin if run.failing == "source" else target] = str(run.stopped)
    return report
