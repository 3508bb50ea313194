"""`dolmen export` and `import`: everything of a store or a cluster as one file or stream."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from io import FileIO
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.ending import DAMAGED
from dolmen.cli.options import Bandwidth, Config, Json, Stores, settings_of
from dolmen.cli.output import progress_bar, show
from dolmen.cli.replicate import of_report, show_run
from dolmen.errors import BadSetting, Corrupt, Unavailable
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    from dolmen.config import Settings
    from dolmen.payload import Piece
    from dolmen.replication.archive import Imported, Progress

STEP = 1 << 20
_MOMENT = 0.2


async def export(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to write it; - is standard output.")
    ],
    stores: Stores = None,
    config: Config = None,
    bandwidth: Bandwidth = None,
    json: Json = False,
) -> int:
    """Write everything a store or a cluster holds to FILE, deletes included.

    May be interrupted: run again with the same FILE, it goes on where it was. Nothing needs to
    be stopped meanwhile. Exit status 1 when something could not be read on any server;
    it is named, and all else is in the file.

    [green]dolmen export backup.dolmen --config cluster.toml[/green]

    [green]dolmen export - volume:/srv/data | ssh elsewhere dolmen import - volume:/srv/copy[/green]
    """
    from dolmen.closing import closing
    from dolmen.config.opening import opened_store
    from dolmen.pace import Pace
    from dolmen.replication.archive import Progress
    from dolmen.replication.archive import export as pieces_of

    settings = settings_of(config, stores)
    source = _names(settings)
    try:
        async with opened_store(settings.all_groups(), read_only=True) as store:
            with _to_write(file) as output, progress_bar("export") as bar:
                begun = Progress() if file == "-" else await _begun(output, file, source)
                pieces = pieces_of(
                    store, source=source, begun=begun, show=of_report(bar), pace=Pace(bandwidth)
                )
                async with closing(pieces):
                    async for piece in pieces:
                        await asyncio.to_thread(_write, output, piece)
                if file != "-":
                    await asyncio.to_thread(os.fsync, output.fileno())
    except BrokenPipeError as error:
        raise Unavailable("the reader closed the pipe before the end of the export") from error
    return show_run(source, file, begun.report, as_json=json)


def _names(settings: Settings) -> str:
    servers = [server for group in settings.all_groups() for server in group.servers]
    return ", ".join(without_secrets(server.url) for server in servers)


def _to_write(path: str) -> FileIO:
    """The file to write to, locked; for standard output, what is said goes to stderr."""
    if path == "-":
        if sys.stdout.isatty():
            raise BadSetting("an export is binary: give a FILE, or pipe it into another command")
        data = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return open(data, "wb", buffering=0)
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadSetting(f"{path} is no file: give -, and redirect standard output to it")
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 - its caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise BadSetting(f"{path}: another export is writing to it") from error
    return file


async def _begun(file: FileIO, path: str, source: str) -> Progress:
    """How far the file goes, which is left open there."""
    from dolmen.replication.archive import Progress, progress_of

    if not os.fstat(file.fileno()).st_size:
        return Progress()
    file.seek(0)
    try:
        found = await progress_of(_read_pieces(file))
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


async def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export; - is standard input.")],
    stores: Stores = None,
    config: Config = None,
    bandwidth: Bandwidth = None,
    rejoin: Annotated[
        bool,
        typer.Option(
            "--rejoin",
            help="Also restore what may have been deleted since, longer ago than deletes are "
            "remembered.",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Restore an export to a STORE, or to a cluster.

    The newer of two versions wins; nothing is removed. May be interrupted and run again:
    what is there is not written twice. Damaged parts of FILE are listed and left out. Exit
    status 5 when anything of it could not be read.

    [green]dolmen import backup.dolmen volume:/srv/data[/green]

    [green]dolmen import backup.dolmen --config cluster.toml[/green]
    """
    from dolmen.config.opening import opened_store
    from dolmen.pace import Pace
    from dolmen.replication.archive import import_archive

    settings = settings_of(config, stores)
    with _to_read(file) as archive:
        size = os.fstat(archive.fileno()).st_size or None
        async with opened_store(settings.all_groups()) as store:
            with progress_bar("import", unit="bytes") as bar:
                imported = await import_archive(
                    _read_pieces(archive),
                    store,
                    rejoin=rejoin,
                    show=lambda imported: bar(imported.read, size),
                    pace=Pace(bandwidth),
                )
    status = show_run(file, _names(settings), imported.report, as_json=json)
    facts = asdict(imported)
    del facts["report"]
    show(facts, _import_lines(imported), as_json=json)
    return status if imported.complete else DAMAGED


def _import_lines(imported: Imported) -> Iterator[str]:
    for what, found in (
        ("damaged in the export, and left out", imported.damaged),
        ("not in the export, as it could not be read", imported.lacking),
    ):
        if found.count:
            yield f"{what}: {found.count:,}"
        for _, why in found.examples:
            yield f"  {why}"
    if imported.missing:
        yield f"{imported.missing:,} records are missing in the export"
    elif imported.ends or not (imported.complete or imported.damaged.count):
        yield "the export is not complete: its end is missing"
    if imported.ends:
        yield f"  {imported.ends}"


def _to_read(path: str) -> FileIO:
    return open(os.dup(sys.stdin.fileno()) if path == "-" else path, "rb", buffering=0)


async def _read_pieces(file: FileIO) -> AsyncIterator[Piece]:
    """What is in an unbuffered file, as it comes. A pipe is waited for a moment at a time, so that
    Ctrl-C finds no thread that is stuck in it.
    """

    def read() -> bytes | None:
        return file.read(STEP) if select.select([file], [], [], _MOMENT)[0] else None

    while (piece := await asyncio.to_thread(read)) != b"":
        if piece:
            yield piece
