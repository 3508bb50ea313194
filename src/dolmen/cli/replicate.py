"""`dolmen replicate`, `drain` and `rejoin`: bring servers to what they should hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.ending import FAILED, UNAVAILABLE, tell
from dolmen.cli.options import Config, Json, Member, settings_of
from dolmen.cli.output import Show, progress_bar, readable, show
from dolmen.errors import BadSetting, Unavailable
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    from dolmen.replication import Report
    from dolmen.replication.repair import Repair
    from dolmen.replication.report import Round

Source = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="A store's URL.", show_default=False)
]
Destination = Annotated[
    str | None, typer.Argument(metavar="DESTINATION", help="A store's URL.", show_default=False)
]
Watch = Annotated[bool, typer.Option("--watch", help="Repeat until interrupted.")]


async def replicate(
    source: Source = None,
    destination: Destination = None,
    config: Config = None,
    watch: Watch = False,
    json: Json = False,
) -> int:
    """Copy to DESTINATION what it lacks of SOURCE, deletes included; nothing is removed.

    Without stores, the servers of every group in the settings are repaired: missing copies
    are made, and misplaced ones are removed once the rightful copies were verified. A run may be
    interrupted at any time and started again. Exit status 0 only when everything is where it
    should be.

    [green]dolmen replicate http://10.0.0.1:3001 http://10.0.0.2:3001[/green]

    [green]dolmen replicate volume:/srv/data http://backup:3001[/green]

    [green]dolmen replicate --config cluster.toml --watch[/green]
    """
    if (source is None) != (destination is None):
        raise typer.BadParameter("give both SOURCE and DESTINATION, or none of them")
    if source is None or destination is None:
        runs = _cluster(config, as_json=json)
    elif config is None:
        runs = _pair(source, destination, as_json=json)
    else:
        raise typer.BadParameter("give two stores or --config, not both")
    async with contextlib.aclosing(runs):
        async for status in runs:
            if not watch:
                return status
    return 0  # not reached: the runs have no end


async def _pair(source: str, destination: str, *, as_json: bool) -> AsyncGenerator[int, None]:
    """Copy again and again, each time with what the stores then say of themselves."""
    from dolmen.replication import replicate as copy
    from dolmen.replication.repair import PAUSE
    from dolmen.stores import open_existing, open_store

    names = without_secrets(source), without_secrets(destination)
    _check_apart(source, destination)
    while True:
        async with (
            contextlib.aclosing(await open_existing(source, read_only=True)) as origin,
            contextlib.aclosing(await open_store(destination)) as target,
        ):
            with progress_bar("replicate") as bar:
                report = await copy(origin, target, progress=of_report(bar))
        yield show_run(*names, report, as_json=as_json)
        await asyncio.sleep(PAUSE)


def _check_apart(*urls: str) -> None:
    from dolmen.stores.volume import path_of

    folders = [os.path.realpath(path_of(url)) for url in urls if url.startswith("volume:")]
    if len(folders) == 2 and folders[0] == folders[1]:
        raise BadSetting(f"{urls[0]} and {urls[1]} are the same volume")


async def _cluster(config: str | None, *, as_json: bool) -> AsyncGenerator[int, None]:
    from dolmen.replication.repair import watch as watched

    async with _repairing(config) as repair, contextlib.aclosing(watched(repair)) as rounds:
        async for done in rounds:
            yield _show_round(done, len(repair.members), as_json=as_json)


async def drain(server: Member, config: Config = None, json: Json = False) -> int:
    """Move everything from SERVER to the others of the cluster, and say when it is empty.

    First give it [bold]weight = 0[/bold] in the configuration, raise [bold]epoch[/bold], and
    start every API server with that: from then on nothing new goes there. When it is empty it
    may be stopped and taken out of the configuration (and the epoch raised again). May be
    interrupted and run again. Exit status 0 when it is empty.

    [green]dolmen drain attic --config cluster.toml[/green]
    """
    async with _repairing(config) as repair:
        member = repair.members.get(server)
        if member is None:
            known = ", ".join(repair.members)
            raise BadSetting(f"there is no server {server!r}: the configuration has {known}")
        if member.weight:
            raise BadSetting(
                f"{server} has weight = {member.weight:g}: give it weight = 0 in the configuration "
                "and raise epoch, start every API server with that, then drain it"
            )
        while True:
            done = await repair.round()
            status = _show_round(done, len(repair.members), as_json=json)
            if done.failing:
                return UNAVAILABLE
            left = (await member.store.digests()).count
            dropped = done.dropped.get(server)
            if left and dropped is not None and dropped.removed:
                continue
            if not json:
                print(
                    f"{server} still holds {left:,}, which no other server can accept"
                    if left
                    else f"{server} is empty: stop it, take it out of the configuration, and raise "
                    "epoch again"
                )
            return status or FAILED if left else 0


async def rejoin(server: Member, config: Config = None) -> None:
    """Let a stale server's copies count again.

    A server is stale when it was away while old deletes were forgotten: out of the
    configuration, or with its disk set back. Nothing is read from it, because some of what it
    holds may have been deleted. If that is wanted all the same, rejoin it; otherwise empty it,
    and it will be filled.

    [green]dolmen rejoin attic --config cluster.toml[/green]
    """
    from dolmen.config.opening import opened_groups
    from dolmen.replication.purge import rejoin as let_in
    from dolmen.stores.retrying import Retrying

    async with opened_groups(settings_of(config).all_groups(), existing=True) as opened:
        members = [member for group in opened for member in group.members]
        await let_in({each.name: Retrying(each.store, each.name) for each in members}, server)
    print(f"{server}: what it holds counts again")


@contextlib.asynccontextmanager
async def _repairing(config: str | None) -> AsyncIterator[Repair]:
    """The repair of the cluster in the settings, with its stores open and a progress bar."""
    from dolmen.config.opening import opened_groups
    from dolmen.replication.repair import DAY, Repair, Terms
    from dolmen.stores.epoch import Seen

    settings = settings_of(config)
    limits = settings.replication
    terms = Terms(limits.bandwidth, limits.parallel, limits.reclaim_days * DAY)
    seen = Seen(settings.epoch, settings.fingerprint())
    async with opened_groups(settings.all_groups()) as opened:
        with progress_bar("replicate") as bar:
            update = of_report(bar)
            yield Repair(opened, seen, terms, progress=lambda _from, _to, report: update(report))


def of_report(bar: Show) -> Callable[[Report], None]:
    """Have a bar show a run of replication."""
    return lambda report: bar(report.compared, report.total, f"compared, {report.copied} copied")


def _show_round(done: Round, servers: int, *, as_json: bool) -> int:
    """Print what a round did; returns its exit status."""
    for pair, report in done.runs.items():
        show_run(*pair, report, as_json=as_json)
    facts = {
        "complete": done.complete,
        "failing": done.failing,
        "removed": {name: each.removed for name, each in done.dropped.items()},
        "removed_bytes": sum(each.bytes for each in done.dropped.values()),
        "kept": {name: each.kept for name, each in done.dropped.items()},
        "purged": done.purged,
    }
    show(facts, _round_lines(done, servers), as_json=as_json)
    for name, error in done.failing.items():
        tell(Unavailable(error), name)
    if done.failing:
        return UNAVAILABLE
    return 0 if done.complete else FAILED


def _round_lines(done: Round, servers: int) -> Iterator[str]:
    for name, dropped in done.dropped.items():
        kept = f", {dropped.kept:,} kept until others have them" if dropped.kept else ""
        size = readable(dropped.bytes)
        yield f"{name}: {dropped.removed:,} misplaced copies removed ({size}){kept}"
    if done.purged:
        yield f"{done.purged:,} old tombstones purged"
    if done.complete and not done.runs and not done.dropped:
        yield f"{servers} servers, in sync"


def show_run(source: str, destination: str, report: Report, *, as_json: bool) -> int:
    """Print what a run between two stores did; returns its exit status."""
    facts = {"source": source, "destination": destination, "complete": report.complete}
    lines = _run_lines(report)
    show(
        facts | asdict(report),
        [f"{source} → {destination}: {next(lines)}", *lines],
        as_json=as_json,
    )
    if report.stopped:
        return UNAVAILABLE
    return 0 if report.complete else FAILED


def _run_lines(report: Report) -> Iterator[str]:
    counts = (
        (report.copied, f"copied ({readable(report.bytes)})"),
        (report.touched, "touched"),
        (report.tombstones, "deletes carried over"),
    )
    done = [f"{count:,} {what}" for count, what in counts if count]
    if not done and report.complete:
        done = ["in sync"]
    yield ", ".join([f"{report.compared:,} compared", *done])
    for reason, refused in report.refused.items():
        yield f"  not copied, {reason}: {refused.count}"
        for name, error in refused.examples:
            yield f"    {name}: {error}"
    if report.stopped:
        yield f"  stopped: the {report.failing} failed: {report.stopped}; run it again"
