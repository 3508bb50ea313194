"""Repair: rounds that bring every server of a cluster to what it should hold.

A round makes sure who is who (`membership`), leaves out servers that missed a purge, copies what
is missing (`group`), drops misplaced copies (`misplaced`) and forgets old deletes (`purge`).
Nothing is kept between rounds that a round needs, so one may be broken off anywhere and begun
again, and several repairers may be at work at once: a copy that is there already is not made
twice, and what one removes has been verified elsewhere.

When servers were given a configuration, nothing is removed for `SETTLE` seconds: by then what an
older configuration was removing has been removed, or is refused.

Read first: `dolmen.replication.membership`, `dolmen.replication.group`.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from dolmen.cluster.groups import Group
from dolmen.cluster.placement import Placement
from dolmen.errors import DolmenError
from dolmen.pace import Pace
from dolmen.replication.group import partitions_of, replicate_group
from dolmen.replication.membership import Membership
from dolmen.replication.misplaced import Dropping
from dolmen.replication.purge import MISSED, OFTEN, SETTLE, Notes, is_stale, purge
from dolmen.replication.report import PairProgress, Round
from dolmen.store import ALL_PARTITIONS
from dolmen.stores.epoch import Seen
from dolmen.stores.retrying import Pause, Retrying, ServerFailed
from dolmen.stores.watermark import purged_in

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
        notes, failing = await self._membership.check(self._usable(report), told=self._told)
        report.failing |= failing
        if self._membership.news:
            self._settled_at, self._membership.news = self._now() + SETTLE, False
        await self._leave_out_stale(report, notes)
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
        if report.complete and self._now() - self._noted_at >= _NOTE_EVERY:
            self._noted_at = self._now()
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

    async def _leave_out_stale(self, report: Round, notes: Mapping[str, Notes]) -> None:
        newest = max(map(purged_in, notes.values()), default=0)
        for name, noted in notes.items():
            try:
                stale = await is_stale(self._stores[name], noted, newest)
            except ServerFailed as failed:
                report.failing[name] = str(failed.error)
                continue
            self.members[name].stale = f"{name} {MISSED}" if stale else None
            if stale:
                report.failing[name] = report.stale[name] = f"{name} {MISSED}"

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
            if work.dropped.removed or work.dropped.kept:
                report.dropped[name] = work.dropped

    async def _purge(self, report: Round) -> None:
        stamped = all(each.capabilities.stamps for each in self._stores.values())
        # Also where a watermark is ahead of this age, as after a longer one was set.
        if not stamped or self._now() - self._purged_at < self._terms.reclaim_age / OFTEN:
            return
        self._purged_at = self._now()
        try:
            report.purged = await purge(
                self._stores,
                age_ms=int(self._terms.reclaim_age * 1_000),
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
    failures: Counter[str] = Counter()
    back: dict[str, float] = {}
    why: dict[str, str] = {}
    while True:
        out = {
            name: f"{why[name]} (asked again in {at - now():.0f} s)"
            for name, at in back.items()
            if at > now()
        }
        report = await repair.round(out)
        for name in repair.members.keys() - out.keys():
            if name in report.failing:
                failures[name] += 1
                why[name] = report.failing[name]
                back[name] = now() + min(LONGEST, PAUSE * 2 ** (failures[name] - 1))
            else:
                failures[name] = 0
        yield report
        await pause(PAUSE)
