"""Options several commands have, said the same way by all, and the cluster they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.errors import BadSetting

if TYPE_CHECKING:
    from dolmen.config import Settings

SERVER = "http://127.0.0.1:9991"
ServerOption = Annotated[
    str,
    typer.Option("--server", "-s", envvar="DOLMEN_SERVER", metavar="URL", help="The API server."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings in TOML, or an sos.conf. Else ~/.config/dolmen.toml or /etc/dolmen.toml.",
    ),
]
Bandwidth = Annotated[
    int | None,
    typer.Option(
        "--bandwidth", metavar="BYTES", min=1, help="Limit throughput (bytes per second)."
    ),
]
ObjectId = Annotated[str, typer.Argument(metavar="ID", help="The object's id, as put printed it.")]
Member = Annotated[str, typer.Argument(metavar="SERVER", help="Its name in the configuration.")]
Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="volume:/path, or the folder alone.")]
Stores = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STORE",
        help="URLs of stores that hold copies of the same; without any, the cluster in the "
        "settings.",
        show_default=False,
    ),
]


def settings_of(config: str | None, stores: Sequence[str] | None = None) -> Settings:
    """The settings with the cluster a command is about; raises `BadSetting` for none."""
    from dolmen.config import load

    if stores and config:
        raise typer.BadParameter("give stores or --config, not both")
    flags = {"blob_servers": list(stores)} if stores else {}
    settings = load(flags, config=config, needs_servers=True).settings
    if not settings.all_groups():
        raise BadSetting("no cluster is named: give store URLs, or a --config that names groups")
    return settings
