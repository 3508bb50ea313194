"""`dolmen rm`: delete objects."""

from __future__ import annotations

from dolmen.cli.ending import run, status_of, tell
from dolmen.cli.options import SERVER, Json, ObjectIds, ServerOption
from dolmen.cli.output import emit


def rm(object_ids: ObjectIds, server: ServerOption = SERVER, json: Json = False) -> None:
    """Delete objects everywhere. What is not there counts as deleted.

    [green]dolmen rm ID[/green]
    """
    import typer

    raise typer.Exit(run(_rm(object_ids, server, as_json=json)))


async def _rm(object_ids: list[str], server: str, *, as_json: bool) -> int:
    from dolmen.client import AsyncClient
    from dolmen.errors import DolmenError

    worst = 0
    async with AsyncClient(server) as client:
        for object_id in object_ids:
            try:
                await client.delete(object_id)
            except DolmenError as error:
                tell(error, object_id[:140])
                worst = max(worst, status_of(error) or 1)
            else:
                if as_json:
                    emit({"id": object_id, "deleted": True})
    return worst
