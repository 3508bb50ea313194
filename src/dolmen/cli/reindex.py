"""`dolmen reindex`: rebuild a volume's index."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from dolmen.cli.options import Json
from dolmen.cli.output import emit


def reindex(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="volume:/path, or the folder alone.")
    ],
    json: Json = False,
) -> None:
    """Rebuild a volume's index from its segments, which hold everything.

    No server may have the volume open. Interrupted, it changes nothing.

    [green]dolmen reindex ./dolmen-data[/green]
    """
    from dolmen.stores.volume.reindex import reindex as rebuild

    found = dataclasses.asdict(rebuild(volume.removeprefix("volume:").removeprefix("//")))
    if json:
        emit(found)
    else:
        for key, value in found.items():
            print(f"{key:10} {value}")
