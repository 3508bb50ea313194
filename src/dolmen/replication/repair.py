"""Repair: rounds that bring every server of a cluster to what it should hold.

A round compares all servers and copies what is missing; then it drops copies that stand
where they should not, and forgets deletes that are old enough. Nothing is kept between
rounds that a round needs, so one may be broken off anywhere and begun again, and
several may be at work at once: a copy that is there already is not made twice, and what
one removes has been verified elsewhere.

Two of them that disagree about who should hold what could each remove what the other
counts on. So before anything else every server is told the epoch of the configuration and
what it says; one that knows a higher epoch, or another configuration of the same, ends the
round (`Outdated`). When a server heard of an epoch for the first time, nothing is removed
for `SETTLE` seconds: by then what an older configuration was removing has been removed,
or is refused, and what stands can be counted. Every server is told its own name as well: one
that was told another's since is in the configuration twice, and its one copy would vouch for
itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dolmen.cluster.groups import Group, Member
from dolmen.cluster.placement import Placement
from dolmen.errors import DolmenError, Outdated
from dolmen.pace import Pace
from dolmen.replication.group import PairProgress, partitions_of, replicate_group
from dolmen.replication.horizon import catch_up, reclaim
from dolmen.replication.patience import Pause, Stopped, ask
from dolmen.replication.rebalance import Dropped, drop_misplaced
from dolmen.replication.report import Report
from dolmen.store import ALL_PARTITIONS, BlobStore
from dolmen.stores.epoch import Seen, seen_in, server_in, tell

SETTLE = 10.0
"""Seconds between telling a server of a new epoch and the first removal."""
DAY = 86_400
COMPARED = "compared"
"""The note with the time of the last round that found everything in its place."""
_NOTE_EVERY = 60.0
_DAMAGE_EVERY = 3_600.0
"""Seconds between two looks for misplaced copies that are damaged."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a repair goes about it. Bandwidth in bytes a second, ages in seconds."""

    bandwidth: float | None = None
    parallel: int = 4
    reclaim_age: float = 30 * DAY
    rejoin: bool = False


@dataclass(slots=True)
class Round:
    """What a round did."""

    runs: Mapping[tuple[str, str], Report] = field(default_factory=dict)
    """The runs that were needed, by source and destination."""
    failing: dict[str, str] = field(default_factory=dict)
    """Servers that failed or were not asked, and why."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """What became of misplaced copies, by the server that had any."""
    reclaimed: int = 0
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
        self._seen = seen
        self._terms = terms or Terms()
        self._progress, self._now, self._pause = progress, now, pause
        self._groups = groups
        self._durable: list[bool] = []
        self._work_out_places()
        self._pace = Pace(self._terms.bandwidth)
        self._told_at: float | None = None
        self._noted_at = -_NOTE_EVERY
        self._looked_at = -_DAMAGE_EVERY

    async def round(self, without: Mapping[str, str] | None = None) -> Round:
        """Do one. Servers in `without` (name and reason) are not asked. Raises `Outdated`.

        Must run in a task.
        """
        report = Round(failing=dict(without or {}))
        began = self._now()
        await self._tell_epoch(report)
        report.failing |= await catch_up(self._stores(report), pause=self._pause)
        self._work_out_places()  # each has been asked by now
        terms = self._terms
        copied = await replicate_group(
            self._stores(report),
            wanted=self._wanted,
            rejoin=terms.rejoin,
            parallel=terms.parallel,
            progress=self._progress,
            pace=self._pace,
            pause=self._pause,
        )
        report.runs = copied.runs
        report.failing |= copied.failing
        try:
            if self._rebalances:
                await self._settle()
                await self._drop_misplaced(report)
            if report.complete:
                await self._settle()
                report.reclaimed = await self._reclaim()
        except Stopped as stopped:
            if isinstance(stopped.error, Outdated):
                raise stopped.error from stopped
            report.failing[stopped.who] = str(stopped)
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

    def _reachable(self, report: Round) -> dict[str, Member]:
        return {name: each for name, each in self.members.items() if name not in report.failing}

    def _stores(self, report: Round) -> dict[str, BlobStore]:
        return {name: member.store for name, member in self._reachable(report).items()}

    async def _tell_epoch(self, report: Round) -> None:
        """Tell every server of the configuration; note those that can't be told."""
        if not self._rebalances and not self._seen.epoch:
            return  # nothing is ever misplaced
        for name, member in self._reachable(report).items():
            store = member.store
            if not store.capabilities.stamps:
                continue
            try:
                notes = await ask(store.notes, side="source", pause=self._pause)
                known = seen_in(notes)
                if known == self._seen and server_in(notes) == name:
                    continue
                self._refuse_older(name, known)
                await tell(store, self._seen, name)
                self._told_at = self._now()
            except (Stopped, DolmenError) as error:
                if isinstance(error, Outdated):
                    raise
                report.failing[name] = str(error)
        if self._told_at is not None:
            await self._find_twins(report)

    async def _find_twins(self, report: Round) -> None:
        """Leave out a server that answers to another's name: it has no copies of its own."""
        for name, member in self._reachable(report).items():
            if not member.store.capabilities.stamps:
                continue
            try:
                notes = await ask(member.store.notes, side="source", pause=self._pause)
            except Stopped as stopped:
                report.failing[name] = str(stopped)
                continue
            other = server_in(notes)
            if other not in ("", name):  # one that is not durable may have forgotten
                report.failing[name] = (
                    f"it is the same server as {other}: take one of them out of the configuration"
                )

    def _refuse_older(self, name: str, known: Seen) -> None:
        if known == self._seen:
            return
        ours = self._seen.epoch
        if known.epoch > ours:
            raise Outdated(
                f"{name} has seen epoch {known.epoch} of the configuration, this one is epoch "
                f"{ours}: use the newer configuration"
            )
        if known.epoch == ours and known.fingerprint:
            raise Outdated(
                f"{name} has seen another configuration with epoch {ours}. If this is the newer "
                f"one (servers, weights, zones or copies changed), give it epoch = {ours + 1} and "
                "use it everywhere"
            )

    async def _settle(self) -> None:
        if self._told_at is not None:
            left = self._told_at + SETTLE - self._now()
            if left > 0:
                await self._pause(left)
            self._told_at = None

    async def _drop_misplaced(self, report: Round) -> None:
        damaged = self._now() - self._looked_at >= _DAMAGE_EVERY
        if damaged:
            self._looked_at = self._now()
        for name, member in self._reachable(report).items():
            if not member.store.capabilities.stamps:
                continue  # a plain sos server can't be told to remove anything
            try:
                dropped = await drop_misplaced(
                    member,
                    self._placement,
                    epoch=self._seen.epoch,
                    failing=[*report.failing],
                    pace=self._pace,
                    damaged=damaged,
                    pause=self._pause,
                )
            except Stopped as stopped:
                if isinstance(stopped.error, Outdated):
                    raise
                report.failing[name] = str(stopped)
                continue
            report.failing |= dropped.failing
            if dropped.removed or dropped.kept:
                report.dropped[name] = dropped

    async def _reclaim(self) -> int:
        stores = {name: member.store for name, member in self.members.items()}
        if not all(store.capabilities.stamps for store in stores.values()):
            return 0
        return await reclaim(
            stores,
            age_ms=int(self._terms.reclaim_age * 1_000),
            now_ms=int(self._now() * 1_000),
            epoch=self._seen.epoch,
            pause=self._pause,
        )

    async def _note_compared(self, report: Round, began: float) -> None:
        """Tell every server since when it is known to hold what it should: what came later may not
        have been seen.
        """
        now = self._now()
        if now - self._noted_at < _NOTE_EVERY:
            return
        self._noted_at = now
        value = json.dumps({"at": round(began, 3)}).encode()
        for name, member in self.members.items():
            if member.store.capabilities.stamps:
                try:
                    await member.store.note(COMPARED, value)
                except DolmenError as error:
                    report.failing[name] = str(error)
