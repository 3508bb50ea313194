"""`dolmen ls`: list objects."""

from __future__ import annotations

from dolmen.cli.ending import run
from dolmen.cli.options import SERVER, Json, ServerOption
from dolmen.cli.output import emit


def ls(server: ServerOption = SERVER, json: Json = False) -> None:
    """List every object's id, a line each, as they come.

    [green]dolmen ls | wc -l[/green]
    """
    run(_ls(server, as_json=json))


async def _ls(server: str, *, as_json: bool) -> None:
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:
        async for object_id in client.list():
            if as_json:
                emit({"id": object_id})
            else:
                print(object_id)
