"""`dolmen api-server`: uploads and downloads over a cluster of stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.options import SERVER, Config, Open, Workers

if TYPE_CHECKING:
    from dolmen.config import Group, Settings

LISTEN = "127.0.0.1:9991"
DOWNLOADS = "127.0.0.1:9992"
Listen = Annotated[
    str | None,
    typer.Option(
        "--listen", metavar="HOST:PORT", help=f"Address for all requests. Default: {LISTEN}."
    ),
]
DownloadListen = Annotated[
    str | None,
    typer.Option(
        "--download-listen",
        metavar="HOST:PORT",
        help=f"Address for downloads only. Default: {DOWNLOADS}.",
    ),
]


def api_server(
    blob_server: Annotated[
        list[str] | None,
        typer.Option(
            "--blob-server",
            "-b",
            metavar="URL",
            help="A store of the cluster; may be given many times, or a list with commas.",
        ),
    ] = None,
    listen: Listen = None,
    download_listen: DownloadListen = None,
    workers: Workers = None,
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Repair missing and misplaced copies continuously; on by default.",
        ),
    ] = None,
    open: Open = None,  # noqa: A002 - the option's name
    config: Config = None,
) -> None:
    """Serve uploads and downloads over blob servers, which hold the objects.

    [green]dolmen api-server -b http://10.0.0.1:3001 -b http://10.0.0.2:3001[/green]

    [green]dolmen api-server --config cluster.toml[/green]
    """
    from dolmen.config import load, split_list
    from dolmen.errors import BadSetting

    named = split_list(",".join(blob_server or []))
    flags = {
        "blob_servers": named or None,
        "listen": listen,
        "download_listen": download_listen,
        "workers": workers,
        "repair": repair,
        "open": open,
    }
    settings = load(flags, config=config, needs_servers=True).settings
    groups = settings.all_groups()
    if not groups:
        raise BadSetting(
            "no blob server is named: use --blob-server http://HOST:PORT, or --config with groups; "
            "to try dolmen on one machine, use dolmen serve"
        )
    raise typer.Exit(serve_api(groups, settings))


def serve_api(groups: list[Group], settings: Settings) -> int:
    """Run an API server over these groups; returns the exit status."""
    from dolmen.config import join_address, split_address
    from dolmen.errors import BadSetting
    from dolmen.servers.api import open_api
    from dolmen.servers.metrics import Board
    from dolmen.servers.repairing import Repairing
    from dolmen.servers.routes import Application
    from dolmen.servers.running import run

    repairs = settings.repair and sum(len(group.servers) for group in groups) > 1
    repairing = Repairing(settings) if repairs else None
    board = Board(settings.workers)
    repair = board.said if repairs else None

    async def opened() -> Application:
        return await open_api(groups, settings, repair=repair)

    def ready(addresses: list[tuple[str, int]]) -> None:
        both, downloads = (f"http://{join_address(*address)}" for address in addresses)
        server = "" if both == SERVER else f" --server {both}"
        print(
            f"uploads and everything else on {both}, downloads on {downloads}\n"
            f"  store:  curl -T FILE {both}/upload     or  dolmen put FILE{server}\n"
            f"  fetch:  curl {downloads}/fetch/ID      or  dolmen get ID{server}",
            flush=True,
        )

    urls = [server.url for group in groups for server in group.servers]
    if settings.workers > 1 and any(url.startswith("volume:") for url in urls):
        raise BadSetting(
            "a volume is opened by one process: serve it with dolmen blob-server, and give its "
            "URL to an API server with several workers"
        )
    addresses = [
        split_address(settings.listen or LISTEN),
        split_address(settings.download_listen or DOWNLOADS),
    ]
    if len(set(addresses)) == 1 and addresses[0][1]:
        raise BadSetting(
            f"uploads and downloads can't both be served on port {addresses[0][1]}: "
            "choose another with --listen or --download-listen"
        )
    return run(opened, addresses, settings=settings, ready=ready, repairing=repairing, board=board)
