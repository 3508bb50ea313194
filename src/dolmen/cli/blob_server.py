"""`dolmen blob-server`: one store on the network."""

from __future__ import annotations

from typing import Annotated

import typer

from dolmen.cli.options import Config, Open

LISTEN = "127.0.0.1:3001"


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
        str | None, typer.Option("--listen", metavar="HOST:PORT", help=f"Default: {LISTEN}.")
    ] = None,
    open: Open = None,  # noqa: A002 - the option's name
    config: Config = None,
) -> None:
    """Serve one blob store.

    [green]dolmen blob-server --store volume:/srv/dolmen[/green]

    [green]dolmen blob-server --store volume:/srv/dolmen --listen 10.0.0.1:3001 --open[/green]

    [green]dolmen blob-server --store redis://127.0.0.1:6379[/green]

    Other URLs begin with postgresql://, s3://, gs://, az://, memcached://, cache:
    """
    from dolmen.config import join_address, load, split_address
    from dolmen.errors import BadSetting
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

    addresses = [split_address(settings.listen or LISTEN)]
    raise typer.Exit(run(opened, addresses, settings=settings, ready=ready))
