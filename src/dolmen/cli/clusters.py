"""Which cluster a command is about: the one in the settings, or the stores it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.errors import BadSetting

if TYPE_CHECKING:
    from dolmen.config import Settings

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
