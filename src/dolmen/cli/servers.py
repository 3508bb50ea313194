"""`dolmen serve`, `blob-server` and `api-server`: processes that serve until they are ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.options import SERVER, Config
from dolmen.errors import BadSetting

if TYPE_CHECKING:
    from dolmen.config import Group, Settings

BLOBS = "127.0.0.1:3001"
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
Open = Annotated[
    bool | None,
    typer.Option(
        "--open", help="Allow unauthenticated access from other machines.", show_default=False
    ),
]


def serve(
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Data directory. Default: ./dolmen-data."),
    ] = None,
    listen: Listen = None,
    download_listen: DownloadListen = None,
    open: Open = None,  # noqa: A002 - the option's name
    config: Config = None,
) -> int:
    """Start a store: uploads, downloads and the disk in one process.

    [green]dolmen serve[/green]

    [green]dolmen serve --data /srv/dolmen --listen 0.0.0.0:9991 --open[/green]
    """
    from dolmen.config import Group, Server, load

    flags = {"data": data, "listen": listen, "download_listen": download_listen, "open": open}
    alone = {"repair": False, "workers": 1}
    settings = load(flags, config=config).settings.model_copy(update=alone)
    local = Server(name="local", url=f"volume:{settings.data}")
    group = Group(name="local", servers=[local], copies=1, write_copies=1, min_copies=1)
    return _serve_api([group], settings)


def blob_server(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="URL",
            help="The store to serve: a volume on disk, or another storage engine.",
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help=f"Default: {BLOBS}.")
    ] = None,
    open: Open = None,  # noqa: A002 - the option's name
    config: Config = None,
) -> int:
    """Serve one blob store.

    [green]dolmen blob-server --store volume:/srv/dolmen[/green]

    [green]dolmen blob-server --store volume:/srv/dolmen --listen 10.0.0.1:3001 --open[/green]

    [green]dolmen blob-server --store redis://127.0.0.1:6379[/green]

    Other URLs begin with postgresql://, s3://, gs://, az://, memcached://, cache:
    """
    from dolmen.config import join_address, load, split_address
    from dolmen.servers.blob import BlobServer
    from dolmen.servers.running import run
    from dolmen.stores import open_store
    from dolmen.stores.secrets import without_secrets

    flags = {"store": store, "listen": listen, "open": open}
    settings = load(flags, config=config).settings.model_copy(update={"workers": 1})
    url = settings.store
    if url is None:
        raise BadSetting(
            "no store is named: use --store volume:/path/to/folder, or store = in the settings"
        )
    shown = without_secrets(url)

    async def opened() -> BlobServer:
        opened = await open_store(url)
        # Where the store has a folder, what is spooled takes room on its disk.
        return BlobServer(opened, describes=shown, spool_folder=getattr(opened, "path", None))

    def ready(addresses: list[tuple[str, int]]) -> None:
        for host, port in addresses:
            print(f"blob server of {shown} on http://{join_address(host, port)}", flush=True)

    return run(opened, [split_address(settings.listen or BLOBS)], settings=settings, ready=ready)


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
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Number of worker processes.")
    ] = None,
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Repair missing and misplaced copies continuously; on by default.",
        ),
    ] = None,
    open: Open = None,  # noqa: A002 - the option's name
    config: Config = None,
) -> int:
    """Serve uploads and downloads over blob servers, which hold the objects.

    [green]dolmen api-server -b http://10.0.0.1:3001 -b http://10.0.0.2:3001[/green]

    [green]dolmen api-server --config cluster.toml[/green]
    """
    from dolmen.config import load, split_list

    flags = {
        "blob_servers": split_list(",".join(blob_server or [])) or None,
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
    return _serve_api(groups, settings)


def _serve_api(groups: list[Group], settings: Settings) -> int:
    """Run an API server over these groups; returns the exit status."""
    from dolmen.config import join_address, split_address
    from dolmen.servers.api import open_api
    from dolmen.servers.metrics import Board
    from dolmen.servers.repairing import Repairing
    from dolmen.servers.routes import Application
    from dolmen.servers.running import run

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
    repairs = settings.repair and len(urls) > 1
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

    return run(opened, addresses, settings=settings, ready=ready, repairing=repairing, board=board)
