"""Options several commands have, said the same way by all."""

from __future__ import annotations

from typing import Annotated

import typer

ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        "-s",
        envvar="DOLMEN_SERVER",
        metavar="URL",
        help="The API server.",
    ),
]
SERVER = "http://127.0.0.1:9991"

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
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Number of worker processes.")
]
Open = Annotated[
    bool | None,
    typer.Option(
        "--open",
        help="Allow unauthenticated access from other machines.",
        show_default=False,
    ),
]
ObjectId = Annotated[str, typer.Argument(metavar="ID", help="The object's id, as put printed it.")]
ObjectIds = Annotated[list[str], typer.Argument(metavar="ID", help="Ids, as put printed them.")]
