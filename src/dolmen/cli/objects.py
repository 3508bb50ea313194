"""`dolmen put`, `get`, `ls`, `stat` and `rm`: the client of an API server."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from dolmen.cli.ending import for_each
from dolmen.cli.options import SERVER, Json, ObjectId, ServerOption
from dolmen.cli.output import emit, progress_bar, readable, show

if TYPE_CHECKING:
    from dolmen.client import ObjectInfo


async def put(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files to store; - is standard input.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The file name to keep, for one file or -."),
    ] = None,
    server: ServerOption = SERVER,
    json: Json = False,
) -> int:
    """Store files; print each one's id.

    The id is the SHA-256 of the content, as [green]sha256sum[/green] prints it. The file's
    name and type are kept. Uploading the same content again stores nothing new.

    [green]dolmen put photo.jpg notes.txt[/green]

    [green]tar c folder | dolmen put - --name folder.tar[/green]
    """
    if name is not None and len(files) > 1:
        raise typer.BadParameter("--name is for one file, and several are given")
    from dolmen.client import AsyncClient
    from dolmen.client.files import upload_stream

    async with AsyncClient(server) as client:

        async def put_one(path: str) -> None:
            shown = name or (os.path.basename(path) if path != "-" else None)
            with _opened(path) as file, progress_bar(shown or path, unit="bytes") as bar:
                stored = await upload_stream(client, file, file_name=shown, progress=bar)
            facts = {"id": stored.id, "size": stored.size, "copies": stored.copies, "file": path}
            show(facts, [f"{stored.id}  {path}"], as_json=json)

        return await for_each(files, put_one)


def _opened(path: str) -> BinaryIO:
    return open(os.dup(sys.stdin.fileno()) if path == "-" else path, "rb")


async def get(
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

    The file keeps its original name; without one it is named by the id. It appears when it is
    complete and right; nothing is left of a download that failed. With
    [green]-o -[/green] the exit status tells whether what was written was right.

    [green]dolmen get ID[/green]

    [green]dolmen get ID -o - | tar x[/green]
    """
    from dolmen.client import AsyncClient, download_file
    from dolmen.client.files import copy_to

    async with AsyncClient(server) as client:
        with progress_bar(object_id[:16], unit="bytes") as bar:
            if output == "-":
                async with client.download(object_id) as download:
                    await copy_to(download, sys.stdout.buffer, progress=bar)
                return
            path = await download_file(client, object_id, output, force=force, progress=bar)
    show({"id": object_id, "file": path}, [path], as_json=json)


async def ls(server: ServerOption = SERVER, json: Json = False) -> None:
    """List every object's id, a line each, as they come.

    [green]dolmen ls | wc -l[/green]
    """
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:
        async for object_id in client.list():
            if json:
                emit({"id": object_id})
            else:
                print(object_id)


async def stat(object_id: ObjectId, server: ServerOption = SERVER, json: Json = False) -> None:
    """Show an object's size, metadata, and where its copies are."""
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:
        info = await client.stat(object_id)
    show(dataclasses.asdict(info), _stat_lines(info), as_json=json)


def _stat_lines(info: ObjectInfo) -> Iterator[str]:
    yield f"{info.id}\n  size      {readable(info.size)} ({info.size})"
    for name, value in sorted(info.metadata.items()):
        yield f"  {name:9} {value}"
    yield f"  copies    {info.copies} of {info.wanted}"
    for each in info.servers:
        detail = f" ({each['detail']})" if "detail" in each else ""
        yield f"  on        {each['server']}: {each['state']}{detail}"
    if info.degraded:
        yield "  degraded: dolmen replicate makes the missing copies"


async def rm(
    object_ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Ids, as put printed them.")
    ],
    server: ServerOption = SERVER,
    json: Json = False,
) -> int:
    """Delete objects everywhere. What is not there counts as deleted.

    [green]dolmen rm ID[/green]
    """
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:

        async def remove(object_id: str) -> None:
            await client.delete(object_id)
            if json:
                emit({"id": object_id, "deleted": True})

        return await for_each(object_ids, remove)
