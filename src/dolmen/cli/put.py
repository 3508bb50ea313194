"""`dolmen put`: store files."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from dolmen.cli.ending import run, status_of, tell
from dolmen.cli.options import SERVER, Json, ServerOption
from dolmen.cli.output import emit, transfer_bar

if TYPE_CHECKING:
    from dolmen.client import AsyncClient


def put(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files to store; - is standard input.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The file name to keep, for one file or -."),
    ] = None,
    server: ServerOption = SERVER,
    json: Json = False,
) -> None:
    """Store files; print each one's id.

    The id is the SHA-256 of the content, as [green]sha256sum[/green] prints it. The file's
    name and type are kept. An upload that is repeated stores nothing twice.

    [green]dolmen put photo.jpg notes.txt[/green]

    [green]tar c folder | dolmen put - --name folder.tar[/green]
    """
    if name is not None and len(files) > 1:
        raise typer.BadParameter("--name is for one file, and several are given")
    raise typer.Exit(run(_put(files, name, server, as_json=json)))


async def _put(files: list[str], name: str | None, server: str, *, as_json: bool) -> int:
    from dolmen.client import AsyncClient

    worst = 0
    async with AsyncClient(server) as client:
        for path in files:
            try:
                await _put_one(client, path, name, as_json=as_json)
            except BrokenPipeError:
                raise
            except Exception as error:
                status = status_of(error)
                if status is None:
                    raise
                tell(error, path)
                worst = max(worst, status)
    return worst


async def _put_one(client: AsyncClient, path: str, name: str | None, *, as_json: bool) -> None:
    import mimetypes

    from dolmen.client.files import upload_stream

    shown = name or (os.path.basename(path) if path != "-" else None)
    with _opened(path) as file, transfer_bar(shown or path) as progress:
        about = os.fstat(file.fileno())
        stored = await upload_stream(
            client,
            file,
            size=about.st_size if stat.S_ISREG(about.st_mode) and path != "-" else None,
            file_name=shown,
            mime_type=mimetypes.guess_type(shown, strict=False)[0] if shown else None,
            progress=progress,
        )
    if as_json:
        emit({"id": stored.id, "size": stored.size, "copies": stored.copies, "file": path})
    else:
        print(f"{stored.id}  {path}", flush=True)


def _opened(path: str) -> BinaryIO:
    return open(os.dup(sys.stdin.fileno()) if path == "-" else path, "rb")
