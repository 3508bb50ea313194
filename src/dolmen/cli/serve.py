"""`dolmen serve`: everything in one process."""

from __future__ import annotations

from typing import Annotated

import typer

from dolmen.cli.api_server import DownloadListen, Listen, serve_api
from dolmen.cli.options import Config, Open


def serve(
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Data directory. Default: ./dolmen-data."),
    ] = None,
    listen: Listen = None,
    download_listen: DownloadListen = None,
    open: Open = None,  # noqa: A002 - the option's name
    config: Config = None,
) -> None:
    """Start a store: uploads, downloads and the disk in one process.

    [green]dolmen serve[/green]

    [green]dolmen serve --data /srv/dolmen --listen 0.0.0.0:9991 --open[/green]
    """
    from dolmen.config import Group, Server, load

    flags = {
        "data": data,
        "listen": listen,
        "download_listen": download_listen,
        "open": open,
    }
    settings = load(flags, config=config).settings.model_copy(
        update={"repair": False, "workers": 1}
    )
    local = Server(name="local", url=f"volume:{settings.data}")
    group = Group(name="local", servers=[local], copies=1, write_copies=1, min_copies=1)
    raise typer.Exit(serve_api([group], settings))
