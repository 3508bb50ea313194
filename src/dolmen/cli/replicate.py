"""`dolmen replicate`: make one store hold what another holds, or the servers of groups agree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.ending import FAILED, UNAVAILABLE, run, tell
from dolmen.cli.options import Config, Json
from dolmen.cli.output import emit, readable, report_bar
from dolmen.errors import Unavailable
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    from dolmen.config import Group as GroupSettings
    from dolmen.replication import Report
    from dolmen.store import BlobStore

PAUSE = 10.0
"""Seconds between two runs with `--watch`."""


def replicate(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="A store's URL.", show_default=False)
    ] = None,
    destination: Annotated[
        str | None,
        typer.Argument(metavar="[DESTINATION]", help="A store's URL.", show_default=False),
    ] = None,
    config: Config = None,
    watch: Annotated[
        bool, typer.Option("--watch", help=f"Run again {PAUSE:g} s after each end, until Ctrl-C.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy to DESTINATION what it lacks of SOURCE, deletes included; nothing is removed.

    Without stores, the servers of every group in the settings get all they should
    hold of what stands on any of them. A run may be interrupted at any time and started again. Exit
    status 0 only when everything is where it should be.

    [green]dolmen replicate http://10.0.0.1:3001 http://10.0.0.2:3001[/green]

    [green]dolmen replicate volume:/srv/data http://backup:3001[/green]

    [green]dolmen replicate --config cluster.toml --watch[/green]
    """
    if (source is None) != (destination is None):
        raise typer.BadParameter("give both SOURCE and DESTINATION, or none of them")
    if source is not None and config is not None:
        raise typer.BadParameter("give two stores or --config, not both")
    raise typer.Exit(run(_replicate(source, destination, config, watch=watch, as_json=json)))


async def _replicate(
    source: str | None, destination: str | None, config: str | None, *, watch: bool, as_json: bool
) -> int:
    groups = _groups(config) if source is None else []
    urls = {server.name: server.url for group in groups for server in group.servers}
    if source is not None and destination is not None:
        urls = {"source": source, "destination": destination}
    while True:
        async with _opened(urls) as stores:
            status = 0
            while status != UNAVAILABLE:  # what a server said of itself may be different then
                if groups:
                    status = await _cluster(groups, stores, as_json=as_json)
                else:
                    status = await _pair(urls, stores, as_json=as_json)
                if not watch:
                    return status
                await asyncio.sleep(PAUSE)


def _groups(config: str | None) -> list[GroupSettings]:
    from dolmen.config import load
    from dolmen.errors import BadSetting

    groups = load(config=config, needs_servers=True).settings.all_groups()
    if not groups:
        raise BadSetting(
            "there is nothing to replicate: give two stores, or a --config that names groups"
        )
    return groups


async def _pair(urls: dict[str, str], stores: dict[str, BlobStore], *, as_json: bool) -> int:
    from dolmen.replication import replicate as copy

    with report_bar("replicate") as progress:
        report = await copy(stores["source"], stores["destination"], progress=progress)
    source, destination = map(without_secrets, (urls["source"], urls["destination"]))
    return _tell(source, destination, report, as_json=as_json)


async def _cluster(
    settings: list[GroupSettings], stores: dict[str, BlobStore], *, as_json: bool
) -> int:
    from dolmen.cluster.groups import Member, make_group
    from dolmen.replication import replicate_groups

    groups = [
        make_group(
            group.name,
            [
                Member(each.name, stores[each.name], each.weight, each.zone)
                for each in group.servers
            ],
            copies=group.copies,
            write_copies=group.write_copies,
            min_copies=group.min_copies,
            volatile=True,  # what may be written to is for whoever writes there to decide
        )
        for group in settings
    ]
    with report_bar("replicate") as bar:
        found = await replicate_groups(
            groups, progress=(lambda _from, _to, run: bar(run)) if bar else None
        )
    statuses = [_tell(*pair, report, as_json=as_json) for pair, report in found.runs.items()]
    for name, error in found.failing.items():
        tell(Unavailable(error), name)
        statuses.append(UNAVAILABLE)
    if not statuses and not as_json:
        print(f"{len(stores)} servers, in step")
    return max(statuses, default=0)


@contextlib.asynccontextmanager
async def _opened(urls: dict[str, str]) -> AsyncIterator[dict[str, BlobStore]]:
    from dolmen.stores import open_store

    async with contextlib.AsyncExitStack() as stack:
        stores = {}
        for name, url in urls.items():
            stores[name] = await open_store(url)
            stack.push_async_callback(stores[name].aclose)
        yield stores


def _tell(source: str, destination: str, report: Report, *, as_json: bool) -> int:
    """Print what a run did; returns its exit status."""
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
        done = ["in step"]
    return f"{report.compared:,} compared" + "".join(f", {each}" for each in done)
