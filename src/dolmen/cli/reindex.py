"""`dolmen reindex`: rebuild a volume's index."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from dolmen.cli.options import Json
from dolmen.cli.output import counting_bar, emit, readable


def reindex(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="volume:/path, or the folder alone.")
    ],
    json: Json = False,
) -> None:
    """Rebuild a volume's index from its segments, which hold everything.

    No server may have the volume open. Interrupted, it goes on when the volume is opened next.

    [green]dolmen reindex ./dolmen-data[/green]
    """
    from dolmen.stores.volume import check_there, path_of
    from dolmen.stores.volume.recovery import reindex as rebuild

    check_there(volume)
    with counting_bar("reindex") as bar:

        def show(done: int, total: int) -> None:
            if bar:
                bar(done, total, "segments")

        found = rebuild(path_of(volume), progress=show)
    if json:
        emit(dataclasses.asdict(found))
        return
    print(
        f"{found.blobs:,} blobs and {found.tombstones:,} deletes, from {found.records:,} records "
        f"in {found.segments:,} segments ({readable(found.bytes)})"
    )
    for line in found.damaged:
        print(f"damaged: {line}")
