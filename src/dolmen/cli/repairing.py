"""What `dolmen replicate` on a cluster and `dolmen drain` share: rounds of repair, told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from dolmen.cli.clusters import settings_of
from dolmen.cli.ending import FAILED, UNAVAILABLE, tell
from dolmen.cli.output import emit, readable, report_bar
from dolmen.errors import Unavailable

if TYPE_CHECKING:
    from dolmen.replication import Progress, Report
    from dolmen.replication.repair import Repair
    from dolmen.replication.report import Round


@contextlib.asynccontextmanager
async def repairing(config: str | None) -> AsyncIterator[Repair]:
    """The repair of the cluster in the settings, with its stores open and a progress bar."""
    from dolmen.config.opening import opened_groups
    from dolmen.replication.repair import DAY, Repair, Terms
    from dolmen.stores.epoch import Seen

    settings = settings_of(config)
    limits = settings.replication
    terms = Terms(limits.bandwidth, limits.parallel, limits.reclaim_days * DAY)
    async with opened_groups(settings.all_groups(), volatile=True) as opened:
        with report_bar("replicate") as bar:
            yield Repair(
                opened,
                Seen(settings.epoch, settings.fingerprint()),
                terms,
                progress=partial(_show, bar) if bar else None,
            )


def _show(bar: Progress, _source: str, _destination: str, report: Report) -> None:
    bar(report)


def tell_round(done: Round, servers: int, *, as_json: bool) -> int:
    """Print what a round did; returns its exit status."""
    for pair, report in done.runs.items():
        tell_run(*pair, report, as_json=as_json)
    if as_json:
        emit(
            {
                "complete": done.complete,
                "failing": done.failing,
                "removed": {name: each.removed for name, each in done.dropped.items()},
                "removed_bytes": sum(each.bytes for each in done.dropped.values()),
                "kept": {name: each.kept for name, each in done.dropped.items()},
                "purged": done.purged,
            }
        )
    else:
        for name, dropped in done.dropped.items():
            kept = f", {dropped.kept:,} kept until others have them" if dropped.kept else ""
            print(
                f"{name}: {dropped.removed:,} misplaced copies removed "
                f"({readable(dropped.bytes)}){kept}"
            )
        if done.purged:
            print(f"{done.purged:,} old tombstones purged")
        if done.complete and not done.runs and not done.dropped:
            print(f"{servers} servers, in sync", flush=True)
    for name, error in done.failing.items():
        tell(Unavailable(error), name)
    if done.failing:
        return UNAVAILABLE
    return 0 if done.complete else FAILED


def tell_run(source: str, destination: str, report: Report, *, as_json: bool) -> int:
    """Print what a run between two stores did; returns its exit status."""
    if as_json:
        emit(
            {
                "source": source,
                "destination": destination,
                "complete": report.complete,
                "compared": report.compared,
                "copied": report.copied,
                "bytes": report.bytes,
                "touched": report.touched,
                "tombstones": report.tombstones,
                "vanished": report.vanished,
                "refused": {
                    reason: {"count": refused.count, "examples": dict(refused.examples)}
                    for reason, refused in report.refused.items()
                },
                "stopped": str(report.stopped) if report.stopped else None,
                "failing": report.failing,
            }
        )
    else:
        print(f"{source} → {destination}: {_summary(report)}")
        for reason, refused in report.refused.items():
            print(f"  not copied, {reason}: {refused.count}")
            for name, error in refused.examples:
                print(f"    {name}: {error}")
        if report.stopped:
            print(f"  stopped: the {report.failing} failed: {report.stopped}; run it again")
    if report.stopped:
        return UNAVAILABLE
    return 0 if report.complete else FAILED


def _summary(report: Report) -> str:
    done = [
        f"{count:,} {what}"
        for count, what in (
            (report.copied, f"copied ({readable(report.bytes)})"),
            (report.touched, "touched"),
            (report.tombstones, "deletes carried over"),
        )
        if count
    ]
    if not done and report.complete:
        done = ["in sync"]
    return f"{report.compared:,} compared" + "".join(f", {each}" for each in done)
