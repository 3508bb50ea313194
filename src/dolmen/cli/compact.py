"""`dolmen compact`: reclaim the space of deleted and replaced blobs."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from dolmen.cli.ending import run
from dolmen.cli.options import Bandwidth, Json
from dolmen.cli.output import emit, readable, transfer_bar


def compact(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="volume:/path, or the folder alone.")
    ],
    bandwidth: Bandwidth = None,
    json: Json = False,
) -> None:
    """Reclaim the space of deleted and replaced blobs in a volume.

    A server compacts the volume it has open continuously; this is for one that no server has
    open. May be interrupted and run again.

    [green]dolmen compact volume:/srv/dolmen[/green]

    [green]dolmen compact volume:/srv/dolmen --bandwidth 50000000[/green]
    """
    raise typer.Exit(run(_compact(volume, bandwidth, as_json=json)))


async def _compact(url: str, bandwidth: int | None, *, as_json: bool) -> int:
    from dolmen.pace import Pace
    from dolmen.stores.volume import check_there, open_volume, path_of
    from dolmen.stores.volume.compaction import Compactor

    check_there(url)
    volume = await open_volume(path_of(url))
    try:
        with transfer_bar("compact") as bar:
            compactor = Compactor(volume, pace=Pace(bandwidth))
            running = asyncio.ensure_future(compactor.compact())
            try:
                while not running.done():
                    await asyncio.wait([running], timeout=0.2)
                    if bar:
                        bar(compactor.done.carried, None)
            finally:
                running.cancel()  # where this was interrupted
            done = await running
    finally:
        await volume.aclose()
    if as_json:
        emit(done._asdict())
    else:
        print(
            f"{done.segments:,} segments compacted, reclaimed {readable(done.reclaimed)} "
            f"({readable(done.carried)} rewritten)"
        )
    return 0
