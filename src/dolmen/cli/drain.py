"""`dolmen drain`: empty one server, so that it can be removed."""

from __future__ import annotations

from typing import Annotated

import typer

from dolmen.cli.ending import FAILED, UNAVAILABLE, run
from dolmen.cli.options import Config, Json
from dolmen.cli.repairing import repairing, tell_round


def drain(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="Its name in the configuration.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Move everything from SERVER to the others of the cluster, and say when it is empty.

    First give it [bold]weight = 0[/bold] in the configuration, raise [bold]epoch[/bold], and
    start every API server with that: from then on nothing new goes there. When it is empty it
    may be stopped and taken out of the configuration (and the epoch raised again). May be
    interrupted and run again. Exit status 0 when it is empty.

    [green]dolmen drain attic --config cluster.toml[/green]
    """
    raise typer.Exit(run(_drain(server, config, as_json=json)))


async def _drain(server: str, config: str | None, *, as_json: bool) -> int:
    from dolmen.errors import BadSetting

    async with repairing(config) as repair:
        member = repair.members.get(server)
        if member is None:
            known = ", ".join(repair.members)
            raise BadSetting(f"there is no server {server!r}: the configuration has {known}")
        if member.weight:
            raise BadSetting(
                f"{server} has weight = {member.weight:g}: give it weight = 0 in the configuration "
                "and raise epoch, start every API server with that, then drain it"
            )
        while True:
            done = await repair.round()
            status = tell_round(done, len(repair.members), as_json=as_json)
            if done.failing:
                return UNAVAILABLE
            left = (await member.store.digests()).count
            if not left:
                if not as_json:
                    print(
                        f"{server} is empty: stop it, take it out of the configuration, and raise "
                        "epoch again"
                    )
                return 0
            dropped = done.dropped.get(server)
            if dropped is None or not dropped.removed:
                if not as_json:
                    print(f"{server} still holds {left:,}, which no other server can accept")
                return status or FAILED
