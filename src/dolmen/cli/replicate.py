"""`dolmen replicate`: make one store hold what another holds, or keep a cluster whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Annotated

import typer

from dolmen.cli.ending import UNAVAILABLE, run
from dolmen.cli.options import Config, Json
from dolmen.cli.output import report_bar
from dolmen.cli.repairing import repairing, tell_round, tell_run
from dolmen.errors import BadSetting
from dolmen.stores.secrets import without_secrets

Source = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="A store's URL.", show_default=False)
]
Destination = Annotated[
    str | None, typer.Argument(metavar="DESTINATION", help="A store's URL.", show_default=False)
]
Watch = Annotated[bool, typer.Option("--watch", help="Repeat until interrupted.")]


def replicate(
    source: Source = None,
    destination: Destination = None,
    config: Config = None,
    watch: Watch = False,
    json: Json = False,
) -> None:
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
    if source is not None and destination is not None:
        if config is not None:
            raise typer.BadParameter("give two stores or --config, not both")
        work = _pair(source, destination, watch=watch, as_json=json)
    else:
        work = _cluster(config, watch=watch, as_json=json)
    raise typer.Exit(run(work))


def _check_apart(*urls: str) -> None:
    from dolmen.stores.volume import path_of

    folders = [os.path.realpath(path_of(url)) for url in urls if url.startswith("volume:")]
    if len(folders) == 2 and folders[0] == folders[1]:
        raise BadSetting(f"{urls[0]} and {urls[1]} are the same volume")


async def _pair(source: str, destination: str, *, watch: bool, as_json: bool) -> int:
    from dolmen.replication import replicate as copy
    from dolmen.replication.repair import PAUSE
    from dolmen.stores import open_existing, open_store

    names = without_secrets(source), without_secrets(destination)
    _check_apart(source, destination)
    while True:
        async with contextlib.AsyncExitStack() as stack:
            stores = []
            stores.append(await open_existing(source, read_only=True))
            stack.push_async_callback(stores[-1].aclose)
            stores.append(await open_store(destination))
            stack.push_async_callback(stores[-1].aclose)
            status = 0
            while status != UNAVAILABLE:  # what a server said of itself may be different then
                with report_bar("replicate") as progress:
                    report = await copy(*stores, progress=progress)
                status = tell_run(*names, report, as_json=as_json)
                if not watch:
                    return status
                await asyncio.sleep(PAUSE)


async def _cluster(config: str | None, *, watch: bool, as_json: bool) -> int:
    from dolmen.replication.repair import watch as watched

    async with (
        repairing(config) as repair,
        contextlib.aclosing(watched(repair)) as rounds,
    ):
        async for done in rounds:
            status = tell_round(done, len(repair.members), as_json=as_json)
            if not watch:
                return status
    return 0  # not reached: the rounds have no end
