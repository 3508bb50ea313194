"""`dolmen import`: what an export holds, put back."""

from __future__ import annotations

import os
import sys
from io import FileIO
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.clusters import Stores, settings_of
from dolmen.cli.ending import DAMAGED, run
from dolmen.cli.export import pieces_of
from dolmen.cli.options import Bandwidth, Config, Json
from dolmen.cli.output import emit, transfer_bar
from dolmen.cli.repairing import tell_run

if TYPE_CHECKING:
    from dolmen.config import Settings
    from dolmen.replication.restore import Restored


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export; - is standard input.")],
    stores: Stores = None,
    config: Config = None,
    bandwidth: Bandwidth = None,
    rejoin: Annotated[
        bool,
        typer.Option(
            "--rejoin",
            help="Also put back what may have been deleted since, for longer than deletes are "
            "remembered.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Put back what an export holds: on every STORE, or in its place in a cluster.

    The newer of two versions stands, as everywhere; nothing is removed. May be interrupted and
    run again: what stands is not written twice. What is damaged in FILE is named and
    left out. Exit status 5 when anything of it could not be read.

    [green]dolmen import backup.dolmen volume:/srv/data[/green]

    [green]dolmen import backup.dolmen --config cluster.toml[/green]
    """
    settings = settings_of(config, stores)
    raise typer.Exit(run(_import(file, settings, bandwidth, rejoin=rejoin, as_json=json)))


async def _import(
    path: str, settings: Settings, bandwidth: int | None, *, rejoin: bool, as_json: bool
) -> int:
    from dolmen.config.opening import opened_groups
    from dolmen.pace import Pace
    from dolmen.replication.restore import restore

    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size or None
        async with opened_groups(settings.all_groups(), volatile=True) as opened:
            with transfer_bar("import") as bar:

                def show(restored: Restored) -> None:
                    if bar:
                        bar(restored.read, size)

                restored = await restore(
                    pieces_of(file), opened, rejoin=rejoin, progress=show, pace=Pace(bandwidth)
                )
    return _tell(path, restored, as_json=as_json)


def _opened(path: str) -> FileIO:
    return open(os.dup(sys.stdin.fileno()) if path == "-" else path, "rb", buffering=0)


def _tell(path: str, restored: Restored, *, as_json: bool) -> int:
    worst = 0
    for name, report in restored.runs.items():
        worst = max(worst, tell_run(path, name, report, as_json=as_json))
    if as_json:
        emit(
            {
                "source": restored.source,
                "bytes": restored.read,
                "complete": restored.complete,
                "ends": restored.ends or None,
                "damaged": {
                    "count": restored.damaged.count,
                    "examples": [why for _, why in restored.damaged.examples],
                },
                "lacking": {
                    "count": restored.lacking.count,
                    "examples": [why for _, why in restored.lacking.examples],
                },
            }
        )
    else:
        for refused, what in (
            (restored.damaged, "damaged in the export, and left out"),
            (restored.lacking, "not in the export, as it could not be read"),
        ):
            if refused.count:
                print(f"{what}: {refused.count:,}")
            for _, why in refused.examples:
                print(f"  {why}")
        if not restored.complete:
            print("the export is not complete: its end is missing")
            if restored.ends:
                print(f"  {restored.ends}")
    return worst if restored.complete and not restored.damaged.count else DAMAGED
