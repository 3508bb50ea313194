"""The table of commands. Each is a module; what they need is imported when they run."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

import dolmen
from dolmen import native
from dolmen.cli import (
    api_server,
    blob_server,
    check,
    compact,
    config,
    drain,
    export,
    gc,
    get,
    import_,
    ls,
    put,
    reindex,
    rejoin,
    replicate,
    rm,
    scrub,
    serve,
    stat,
    status,
)


def _filled(text: str | None) -> str:
    """Each paragraph as one line: the terminal's width breaks it, not that of the source."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)


app = typer.Typer(
    name="dolmen",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_filled("""A simple, robust object store.

    Start with [bold]dolmen serve[/bold], then in another terminal:

    [green]dolmen put photo.jpg[/green]  prints the object's id

    [green]dolmen get ID[/green]  fetches it again, checked

    Exit status: 0 done, 1 failed, 2 wrong usage or setting, 3 no such object,
    4 a server could not be asked, 5 damaged content, 130 interrupted.
    """),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dolmen {dolmen.__version__} ({native.DESCRIPTION})")
        raise typer.Exit


@app.callback()
def _dolmen(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_SERVE, _OBJECTS, _MAINTENANCE = "Servers", "Objects", "Maintenance"
for panel, commands in {
    _SERVE: (serve.serve, blob_server.blob_server, api_server.api_server),
    _OBJECTS: (put.put, get.get, ls.ls, stat.stat, rm.rm),
    _MAINTENANCE: (
        replicate.replicate,
        drain.drain,
        rejoin.rejoin,
        status.status,
        check.check,
        scrub.scrub,
        gc.gc,
        compact.compact,
        reindex.reindex,
        export.export,
        import_.import_,
    ),
}.items():
    for command in commands:
        name = command.__name__.strip("_").replace("_", "-")
        app.command(name, help=_filled(command.__doc__), rich_help_panel=panel)(command)
app.add_typer(config.app, name="config", rich_help_panel=_MAINTENANCE)
