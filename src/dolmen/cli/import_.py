"""`dolmen import`: restore an export."""

from __future__ import annotations

import os
import sys
from io import FileIO
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.clusters import Stores, settings_of
from dolmen.cli.ending import DAMAGED, run
from dolmen.cli.export import read_pieces
from dolmen.cli.options import Bandwidth, Config, Json
from dolmen.cli.output import emit, transfer_bar
from dolmen.cli.repairing import tell_run
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    from dolmen.config import Settings
    from dolmen.replication.archive import Imported


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export; - is standard input.")],
    stores: Stores = None,
    config: Config = None,
    bandwidth: Bandwidth = None,
    rejoin: Annotated[
        bool,
        typer.Option(
            "--rejoin",
            help="Also restore what may have been deleted since, longer ago than deletes are "
            "remembered.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Restore an export to a STORE, or to a cluster.

    The newer of two versions wins; nothing is removed. May be interrupted and run again:
    what is there is not written twice. Damaged parts of FILE are listed and left out. Exit
    status 5 when anything of it could not be read.

    [green]dolmen import backup.dolmen volume:/srv/data[/green]

    [green]dolmen import backup.dolmen --config cluster.toml[/green]
    """
    settings = settings_of(config, stores)
    raise typer.Exit(run(_import(file, settings, bandwidth, rejoin=rejoin, as_json=json)))


async def _import(
    path: str, settings: Settings, bandwidth: int | None, *, rejoin: bool, as_json: bool
) -> int:
    from dolmen.config.opening import opened_store
    from dolmen.pace import Pace
    from dolmen.replication.archive import import_archive

    groups = settings.all_groups()
    target = ", ".join(without_secrets(server.url) for group in groups for server in group.servers)
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size or None
        async with opened_store(groups) as store:
            with transfer_bar("import") as bar:

                def show(imported: Imported) -> None:
                    if bar:
                        bar(imported.read, size)

                imported = await import_archive(
                    read_pieces(file), store, rejoin=rejoin, show=show, pace=Pace(bandwidth)
                )
    return _print(path, target, imported, as_json=as_json)


def _opened(path: str) -> FileIO:
    return open(os.dup(sys.stdin.fileno()) if path == "-" else path, "rb", buffering=0)


def _print(path: str, target: str, imported: Imported, *, as_json: bool) -> int:
    status = tell_run(path, target, imported.report, as_json=as_json)
    parts = {"damaged": imported.damaged, "lacking": imported.lacking}
    if as_json:
        facts: dict[str, object] = {
            what: {"count": found.count, "examples": [why for _, why in found.examples]}
            for what, found in parts.items()
        }
        emit(
            {
                "source": imported.source,
                "bytes": imported.read,
                "complete": imported.complete,
                "missing": imported.missing,
                "ends": imported.ends or None,
                **facts,
            }
        )
    else:
        for what, found in parts.items():
            if found.count:
                print(f"{_PARTS[what]}: {found.count:,}")
            for _, why in found.examples:
                print(f"  {why}")
        if imported.missing:
            print(f"{imported.missing:,} records are missing in the export")
        elif imported.ends or not (imported.complete or imported.damaged.count):
            print("the export is not complete: its end is missing")
        if imported.ends:
            print(f"  {imported.ends}")
    return status if imported.complete else DAMAGED


_PARTS = {
    "damaged": "damaged in the export, and left out",
    "lacking": "not in the export, as it could not be read",
}
