"""`dolmen export`: a backup as one file or stream."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
import sys
from collections.abc import AsyncIterator
from io import FileIO
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.clusters import Stores, settings_of
from dolmen.cli.ending import run
from dolmen.cli.options import Bandwidth, Config, Json
from dolmen.cli.output import report_bar
from dolmen.cli.repairing import tell_run
from dolmen.closing import closing
from dolmen.errors import BadSetting, Corrupt, Unavailable
from dolmen.payload import Piece
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    from dolmen.config import Settings
    from dolmen.replication.archive import Progress

STEP = 1 << 20
_MOMENT = 0.2


def export(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to write it; - is standard output.")
    ],
    stores: Stores = None,
    config: Config = None,
    bandwidth: Bandwidth = None,
    json: Json = False,
) -> None:
    """Write everything a store or a cluster holds to FILE, deletes included.

    May be interrupted: run again with the same FILE, it goes on where it was. Nothing needs to
    be stopped meanwhile. Exit status 1 when something could not be read on any server;
    it is named, and all else is in the file.

    [green]dolmen export backup.dolmen --config cluster.toml[/green]

    [green]dolmen export - volume:/srv/data | ssh elsewhere dolmen import - volume:/srv/copy[/green]
    """
    settings = settings_of(config, stores)
    raise typer.Exit(run(_export(file, settings, bandwidth, as_json=json)))


async def _export(path: str, settings: Settings, bandwidth: int | None, *, as_json: bool) -> int:
    from dolmen.config.opening import opened_store
    from dolmen.pace import Pace
    from dolmen.replication.archive import Progress
    from dolmen.replication.archive import export as pieces_of

    groups = settings.all_groups()
    source = ", ".join(without_secrets(server.url) for group in groups for server in group.servers)
    try:
        async with opened_store(groups, read_only=True) as store:
            with _opened(path) as file, report_bar("export") as bar:
                kept = path != "-" and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                begun = (await _begun(file, path, source) if kept else None) or Progress()
                show = bar or (lambda _: None)
                pace = Pace(bandwidth)
                pieces = pieces_of(store, source=source, begun=begun, show=show, pace=pace)
                async with closing(pieces):
                    async for piece in pieces:
                        await asyncio.to_thread(_write, file, piece)
                if kept:
                    await asyncio.to_thread(os.fsync, file.fileno())
    except BrokenPipeError as error:
        raise Unavailable("the reader closed the pipe before the end of the export") from error
    return tell_run(source, path, begun.report, as_json=as_json)


def _opened(path: str) -> FileIO:
    """The file to write to, locked; for standard output, what is said goes to stderr."""
    if path == "-":
        if sys.stdout.isatty():
            raise BadSetting("an export is binary: give a FILE, or pipe it into another command")
        data = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return open(data, "wb", buffering=0)
    if os.path.exists(path) and not os.path.isfile(path):
        return _device(path)
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 - its caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise BadSetting(f"{path}: another export is writing to it") from error
    return file


def _device(path: str) -> FileIO:
    """A device, or a named pipe that somebody reads from: what nobody reads would be lost."""
    try:
        device = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BadSetting(f"nobody reads from {path}: start its reader first") from error
        raise
    os.set_blocking(device, True)
    return open(device, "wb", buffering=0)


async def _begun(file: FileIO, path: str, source: str) -> Progress | None:
    """How far the file goes, which is left open there; None for an empty one."""
    from dolmen.replication.archive import progress_of

    if not os.fstat(file.fileno()).st_size:
        return None
    file.seek(0)
    try:
        found = await progress_of(read_pieces(file))
    except Corrupt as error:
        raise BadSetting(f"{path}: {error}; give another FILE, or remove it") from error
    if found.complete:
        raise BadSetting(f"{path} is a complete export of {found.source}; give another FILE")
    if found.source != source:
        raise BadSetting(f"{path} was begun as an export of {found.source}; give another FILE")
    file.truncate(found.end)
    return found


def _write(file: FileIO, piece: Piece) -> None:
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


async def read_pieces(file: FileIO) -> AsyncIterator[Piece]:
    """What is in an unbuffered file, as it comes. A pipe is waited for a moment at a time, so that
    Ctrl-C finds no thread that is stuck in it.
    """

    def read() -> bytes | None:
        return file.read(STEP) if select.select([file], [], [], _MOMENT)[0] else None

    while (piece := await asyncio.to_thread(read)) != b"":
        if piece:
            yield piece
