"""`dolmen scrub`: read everything a store holds, to find damage."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dolmen.cli.ending import DAMAGED, run
from dolmen.cli.options import Bandwidth, Json
from dolmen.cli.output import counting_bar, emit, readable


def scrub(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Its URL.")],
    bandwidth: Bandwidth = None,
    again: Annotated[bool, typer.Option("--again", help="Start over instead of resuming.")] = False,
    json: Json = False,
) -> None:
    r"""Read and verify every blob of STORE. Damaged copies are quarantined.

    Replication then replaces it from another copy. May be interrupted; the next one goes on
    where it was. Servers with a volume do it by themselves (\[scrub] in the settings). Exit status
    5 when something is damaged.

    [green]dolmen scrub volume:/srv/data[/green]

    [green]dolmen scrub http://10.0.0.1:3001 --bandwidth 50000000[/green]
    """
    from dolmen.pace import give_way

    give_way()
    raise typer.Exit(run(_scrub(store, bandwidth, again=again, as_json=json)))


async def _scrub(url: str, bandwidth: int | None, *, again: bool, as_json: bool) -> int:
    from dolmen.closing import closing
    from dolmen.errors import BadVolume
    from dolmen.pace import Pace
    from dolmen.store import Listing
    from dolmen.stores import open_existing
    from dolmen.stores.scrub import Scrub
    from dolmen.stores.scrub import scrub as through

    try:
        store = await open_existing(url, read_only=False)
    except BadVolume:
        store = await open_existing(url)  # a read-only disk can be scrubbed as well
    found = 0
    done = Scrub()
    try:
        with counting_bar("scrub") as bar:
            async with closing(through(store, again=again, pace=Pace(bandwidth))) as batches:
                async for done, damaged in batches:
                    for failed in damaged:
                        found += 1
                        if not as_json:
                            print(f"{failed.name}: {failed.error}", flush=True)
                    if bar:
                        said = f"% of the names, {done.checked:,} read, {readable(done.bytes)}"
                        bar(int(done.done * 100), 100, said)
        async with closing(store.list(Listing(quarantined=True))) as infos:
            quarantined = [info.name async for info in infos]
    finally:
        await store.aclose()
    if as_json:
        emit(asdict(done) | {"quarantined": len(quarantined)})
    else:
        print(f"{done.checked:,} read ({readable(done.bytes)}), {done.failed:,} damaged")
        if quarantined:
            print(f"{len(quarantined):,} are quarantined until dolmen replicate replaces them")
    return DAMAGED if found or quarantined else 0
