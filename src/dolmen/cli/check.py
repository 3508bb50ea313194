"""`dolmen check`: find missing, outdated, misplaced, damaged and broken copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.clusters import Stores, settings_of
from dolmen.cli.ending import FAILED, run
from dolmen.cli.options import Config, Json
from dolmen.cli.output import counting_bar, emit, readable

if TYPE_CHECKING:
    from dolmen.config import Settings

_MEANING = {
    "lacking": "copies are missing (dolmen replicate makes them)",
    "outdated": "copies are outdated (dolmen replicate updates them)",
    "misplaced": "copies are misplaced (dolmen replicate moves them)",
    "quarantined": "copies are known to be damaged (dolmen replicate replaces them)",
    "damaged": "copies were found damaged and are now quarantined (replicate, then check again)",
    "unreadable": "manifests have no copy that can be read (restore them from a backup)",
    "broken": "objects lack a chunk on every server (upload them again, or restore them)",
}


def check(
    stores: Stores = None,
    config: Config = None,
    data: Annotated[bool, typer.Option("--data", help="Also read and verify every copy.")] = False,
    json: Json = False,
) -> None:
    """Look for what is missing, outdated, misplaced, damaged or broken.

    Changes nothing, but --data quarantines the copies it finds damaged, as scrub does. Exit
    status 0 when no problem was found, else 1.

    [green]dolmen check --config cluster.toml[/green]

    [green]dolmen check --data volume:/srv/data[/green]
    """
    from dolmen.pace import stand_back

    stand_back()
    settings = settings_of(config, stores)
    raise typer.Exit(run(_check(settings, data=data, as_json=json)))


async def _check(settings: Settings, *, data: bool, as_json: bool) -> int:
    from dolmen.config.opening import opened_groups
    from dolmen.replication.check import Findings
    from dolmen.replication.check import check as look

    async with opened_groups(
        settings.all_groups(), volatile=True, existing=True, read_only=not data
    ) as groups:
        with counting_bar("check") as bar:

            def show(found: Findings) -> None:
                if bar:
                    wrong = sum(each.count for each in found.wrong.values())
                    bar(found.names, None, f"{found.read:,} read, {wrong:,} problems")

            found = await look(groups, data=data, progress=show)
    if as_json:
        emit(
            {
                "well": found.well,
                "names": found.names,
                "copies": found.copies,
                "manifests": found.manifests,
                "read": found.read,
                "wrong": {
                    kind: {"count": each.count, "examples": each.examples}
                    for kind, each in found.wrong.items()
                },
                "unnamed": found.unnamed,
                "unnamed_bytes": found.unnamed_bytes,
            }
        )
        return 0 if found.well else FAILED
    for kind, each in found.wrong.items():
        print(f"{each.count:,} {_MEANING[kind]}")
        for name, why in each.examples:
            print(f"  {name}: {why}")
        if each.count > len(each.examples):
            print(f"  and {each.count - len(each.examples):,} more")
    read = f", {found.read:,} read to the end" if data else ""
    print(f"{found.names:,} names, {found.copies:,} copies, {found.manifests:,} manifests{read}")
    if found.unnamed:
        print(
            f"{found.unnamed:,} copies of chunks ({readable(found.unnamed_bytes)}) belong to no "
            "object: dolmen gc removes them after the grace period"
        )
    if found.well:
        print("no problems found")
    return 0 if found.well else FAILED
