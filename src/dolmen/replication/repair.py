"""Repair: rounds that bring every server of a cluster to what it should hold.

A round makes sure who is who (`membership`), leaves out servers that missed a purge, copies what
is missing (`group`), drops misplaced copies (`misplaced`) and forgets old deletes (`purge`).
Nothing is kept between rounds that a round needs, so one may be broken off anywhere and begun
again, and several repairers may be at work at once: a copy that is there already is not made
twice, and what one removes has been verified elsewhere.

When servers were given a configuration, nothing is removed for `SETTLE` seconds: by then what an
older configuration was removing has been removed, or is refused.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dolmen.cluster.groups import Group
from dolmen.cluster.placement import Placement
from dolmen.errors import DolmenError
from dolmen.pace import Pace
from dolmen.replication.group import PairProgress, partitions_of, replicate_group
from dolmen.replication.membership import Membership
from dolmen.replication.misplaced import Dropped, Dropping
from dolmen.replication.purge import OFTEN, SETTLE, find_stale, purge
from dolmen.replication.report import Report
from dolmen.store import ALL_PARTITIONS
from dolmen.stores.epoch import Seen
from dolmen.stores.retrying import Pause, Retrying, ServerFailed

DAY = 86_400
COMPARED = "compared"
"""The note with the time of the last round that found everything in its place."""
PAUSE = 10.0
"""Seconds between the end of a round and the next."""
LONGEST = 300.0
"""Seconds after which a failing server is asked again at the latest."""
_NOTE_EVERY = 60.0
_DAMAGE_EVERY = 3_600.0
"""Seconds between two looks for misplaced copies that are damaged."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a repair goes about it. Bandwidth in bytes a second, ages in seconds."""

    bandwidth: float | None = None
    parallel: int = 4
    reclaim_age: float = 30 * DAY


@dataclass(slots=True)
class Round:
    """What a round did."""

    runs: Mapping[tuple[str, str], Report] = field(default_factory=dict)
    """The runs that were needed, by source and destination."""
    failing: dict[str, str] = field(default_factory=dict)
    """Servers that failed or were not asked, and why; the stale ones among them."""
    stale: dict[str, str] = field(default_factory=dict)
    """Servers that missed a purge (`dolmen.replication.purge`)."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """What became of misplaced copies, by the server that had any."""
    purged: int = 0
    """Deletes forgotten."""

    @property
    def complete(self) -> bool:
        """Whether everything now is where it should be, and nowhere else."""
        return (
            not self.failing
            and all(run.complete for run in self.runs.values())
            and not any(dropped.kept for dropped in self.dropped.values())
        )


class Repair:
    """Repairs one cluster, a round at a time. `now` gives seconds since 1970."""

    def __init__(
        self,
        groups: Sequence[Group],
        seen: Seen,
        terms: Terms | None = None,
        *,
        progress: PairProgress | None = None,
        now: Callable[[], float] = time.time,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self.members = {member.name: member for group in groups for member in group.members}
        self._stores = {n: Retrying(m.store, n, pause=pause) for n, m in self.members.items()}
        self._groups, self._seen, self._terms = groups, seen, terms or Terms()
        self._membership = Membership(seen)
        self._progress, self._now, self._pause = progress, now, pause
        self._pace = Pace(self._terms.bandwidth)
        self._durable: list[bool] = []
        self._work_out_places()
        self._settled_at = 0.0
        self._noted_at = -_NOTE_EVERY
        self._looked_at = -_DAMAGE_EVERY
        self._purged_at = -math.inf

    async def round(self, without: Mapping[str, str] | None = None) -> Round:
        """Do one. Servers in `without` (name and reason) are not asked. Raises `Outdated`.

        Must run in a task.
        """
        report = Round(failing=dict(without or {}))
        began = self._now()
        report.failing |= await self._membership.check(self._usable(report), told=self._told)
        if self._membership.news:
            self._settled_at, self._membership.news = self._now() + SETTLE, False
        await self._leave_out_stale(report)
        self._work_out_places()  # each has been asked by now
        copied = await replicate_group(
            self._usable(report),
            wanted=self._wanted,
            parallel=self._terms.parallel,
            progress=self._progress,
            pace=self._pace,
            pause=self._pause,
        )
        report.runs = copied.runs
        report.failing |= copied.failing
        if self._rebalances:
            await self._drop_misplaced(report)
        if report.complete:
            await self._purge(report)
        if report.complete:
            await self._note_compared(report, began)
        return report

    def _work_out_places(self) -> None:
        """Anew where a server says by now that it is durable, or that it is not."""
        durable = [each.store.capabilities.durable for each in self.members.values()]
        if durable == self._durable:
            return
        self._durable = durable
        self._placement = Placement(self._groups)
        self._wanted = partitions_of(self._placement)
        self._rebalances = any(held is not ALL_PARTITIONS for held in self._wanted.values())

    @property
    def _told(self) -> bool:
        """Whether servers are to know the configuration: without rebalancing it may change."""
        return self._rebalances or bool(self._seen.epoch)

    def _usable(self, report: Round) -> dict[str, Retrying]:
        return {name: each for name, each in self._stores.items() if name not in report.failing}

    async def _leave_out_stale(self, report: Round) -> None:
        while True:
            usable = self._usable(report)
            try:
                report.stale = await find_stale(usable)
                break
            except ServerFailed as failed:
                report.failing[failed.server] = str(failed.error)
        for name in usable:
            self.members[name].stale = report.stale.get(name)
        report.failing |= report.stale

    async def _ready(self, report: Round) -> None:
        """Before a removal: the configuration has settled, and servers are who they were."""
        if (left := self._settled_at - self._now()) > 0:
            await self._pause(left)
        await self._membership.confirm(self._usable(report), told=self._told)

    async def _drop_misplaced(self, report: Round) -> None:
        damaged = self._now() - self._looked_at >= _DAMAGE_EVERY
        if damaged:
            self._looked_at = self._now()
        for name, member in self.members.items():
            stores = self._usable(report)
            if name not in stores or not member.store.capabilities.stamps:
                continue  # a plain sos server can't be told to remove anything
            work = Dropping(
                member,
                self._placement,
                stores,
                self._seen.epoch,
                self._pace,
                lambda: self._ready(report),
            )
            try:
                if damaged:
                    await work.replace_damaged()
                await work.drop()
            except ServerFailed as failed:
                report.failing[failed.server] = str(failed.error)
            report.failing |= work.dropped.failing
            if work.dropped.removed or work.dropped.kept:
                report.dropped[name] = work.dropped

    async def _purge(self, report: Round) -> None:
        stamped = all(each.capabilities.stamps for each in self._stores.values())
        age = self._terms.reclaim_age
        if not stamped or self._now() - self._purged_at < age / OFTEN:
            return
        self._purged_at = self._now()
        try:
            report.purged = await purge(
                self._stores,
                age_ms=int(age * 1_000),
                now_ms=int(self._now() * 1_000),
                epoch=self._seen.epoch,
                ready=lambda: self._ready(report),
                pause=self._pause,
            )
        except ServerFailed as failed:
            report.failing[failed.server] = str(failed.error)

    async def _note_compared(self, report: Round, began: float) -> None:
        """Note on every server since when it is known to hold what it should.

        What came after the round began may not have been seen.
        """
        now = self._now()
        if now - self._noted_at < _NOTE_EVERY:
            return
        self._noted_at = now
        value = json.dumps({"at": round(began, 3)}).encode()
        for name, store in self._stores.items():
            if store.capabilities.stamps:
                try:
                    await store.note(COMPARED, value)
                except DolmenError as error:
                    report.failing[name] = str(error)


async def watch(
    repair: Repair, *, now: Callable[[], float] = time.monotonic, pause: Pause = asyncio.sleep
) -> AsyncGenerator[Round, None]:
    """The report of every round, for as long as it is read. Raises `Outdated`.

    A server that failed is left out of the rounds for a while, twice as long after each failure
    in a row, so that it does not hold up the others.
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
