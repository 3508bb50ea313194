"""`dolmen gc`: remove unreferenced chunks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.clusters import Stores, settings_of
from dolmen.cli.ending import DAMAGED, run
from dolmen.cli.options import Config, Json
from dolmen.cli.output import counting_bar, emit, readable

if TYPE_CHECKING:
    from dolmen.config import Settings

GRACE = 24 * 3600.0


def gc(
    stores: Stores = None,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be removed.")
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            help="Keep chunks stored or used within this time; uploads rely on the default.",
        ),
    ] = GRACE,
    json: Json = False,
) -> None:
    """Remove the chunks of deleted objects and broken-off uploads, while uploads go on.

    Reads every manifest on every server; nothing is removed unless all of them could be
    read. May be interrupted and run again.

    [green]dolmen gc --config cluster.toml --dry-run[/green]

    [green]dolmen gc volume:/srv/data[/green]
    """
    if grace < GRACE and not dry_run:
        print(
            f"dolmen: with --grace {grace:g} an upload that is under way may lose chunks; "
            "use it only while nobody uploads",
            file=sys.stderr,
        )
    from dolmen.pace import stand_back

    stand_back()
    settings = settings_of(config, stores)
    raise typer.Exit(run(_gc(settings, dry_run=dry_run, grace=grace, as_json=json)))


async def _gc(settings: Settings, *, dry_run: bool, grace: float, as_json: bool) -> int:
    from dolmen.config.opening import opened_groups
    from dolmen.replication.gc import BUCKETS, Collected, collect
    from dolmen.stores.epoch import Seen

    seen = Seen(settings.epoch, settings.fingerprint())
    async with opened_groups(settings.all_groups(), volatile=True, existing=True) as groups:
        with counting_bar("gc") as bar:

            def show(done: Collected) -> None:
                if bar:
                    bar(done.buckets, BUCKETS, f"{done.removed:,} of {done.chunks:,} removed")

            done = await collect(groups, seen=seen, grace=grace, dry_run=dry_run, progress=show)
    if as_json:
        emit(
            {
                "dry_run": dry_run,
                "manifests": done.manifests,
                "chunks": done.chunks,
                "young": done.young,
                "removed": done.removed,
                "bytes": done.bytes,
                "by_server": done.by_server,
                "passed_over": done.passed_over,
                "unread": {name: str(error) for name, error in done.unread},
            }
        )
    elif done.unread:
        print("nothing was removed: these manifests can't be read, and nobody knows what they name")
        for name, error in done.unread[:20]:
            print(f"  {name}: {error}")
        print("run dolmen replicate first; dolmen check tells more")
    else:
        would = "would be removed" if dry_run else "removed"
        print(
            f"{done.manifests:,} manifests, {done.chunks:,} copies of chunks: {done.removed:,} "
            f"{would} ({readable(done.bytes)}), {done.young:,} unreferenced within the grace period"
        )
        for name, why in done.passed_over.items():
            print(f"{name}: nothing was removed: {why}")
    return DAMAGED if done.unread else 0
