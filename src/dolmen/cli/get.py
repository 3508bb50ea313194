"""`dolmen get`: fetch an object."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dolmen.cli.ending import run
from dolmen.cli.options import SERVER, Json, ObjectId, ServerOption
from dolmen.cli.output import emit, transfer_bar


def get(
    object_id: ObjectId,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="A file, a folder, or - for stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file.")] = False,
    server: ServerOption = SERVER,
    json: Json = False,
) -> None:
    """Fetch an object into a file, and check it against its id on the way.

    The file is called as when it was put, else by the id. It appears when it is
    complete and right; nothing is left of a download that failed. With
    [green]-o -[/green] the exit status tells whether what was written was right.

    [green]dolmen get ID[/green]

    [green]dolmen get ID -o - | tar x[/green]
    """
    path = run(_get(object_id, output, server, force=force))
    if path is not None and json:
        emit({"id": object_id, "file": path})
    elif path is not None:
        print(path)


async def _get(object_id: str, output: str | None, server: str, *, force: bool) -> str | None:
    from dolmen.client import AsyncClient, download_file
    from dolmen.client.files import copy_to

    async with AsyncClient(server) as client:
        with transfer_bar(object_id[:16]) as progress:
            if output != "-":
                return await download_file(
                    client, object_id, output, force=force, progress=progress
                )
            async with client.download(object_id) as download:
                await copy_to(download, sys.stdout.buffer, progress=progress)
    return None
