"""`dolmen rejoin`: have back what a server holds that missed a purge of old deletes."""

from __future__ import annotations

from typing import Annotated

import typer

from dolmen.cli.clusters import settings_of
from dolmen.cli.ending import run
from dolmen.cli.options import Config


def rejoin(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="Its name in the configuration.")],
    config: Config = None,
) -> None:
    """Let a stale server's copies count again.

    A server is stale when it was away while old deletes were forgotten: out of the
    configuration, or with its disk set back. Nothing is read from it, because some of what it
    holds may have been deleted. If that is wanted all the same, rejoin it; otherwise empty it,
    and it will be filled.

    [green]dolmen rejoin attic --config cluster.toml[/green]
    """
    raise typer.Exit(run(_rejoin(server, config)))


async def _rejoin(server: str, config: str | None) -> int:
    from dolmen.config.opening import opened_groups
    from dolmen.replication.purge import rejoin as let_in
    from dolmen.stores.retrying import Retrying

    groups = settings_of(config).all_groups()
    async with opened_groups(groups, volatile=True, existing=True) as opened:
        members = [member for group in opened for member in group.members]
        await let_in({each.name: Retrying(each.store, each.name) for each in members}, server)
    print(f"{server}: what it holds counts again")
    return 0
