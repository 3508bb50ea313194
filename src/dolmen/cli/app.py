"""The table of commands, and how each runs and ends.

A command is a function, or a coroutine to be run on an event loop; what it returns is its exit
status, None for 0. What it needs is imported when it runs, so that `dolmen --help` is quick.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

import dolmen
from dolmen import native
from dolmen.cli import archive, config, maintenance, objects, replicate, servers, status
from dolmen.cli.ending import run_on_loop, seen_enough, status_of, tell


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


def _command(work: Callable[..., Any]) -> Callable[..., None]:
    """A command as typer runs it: errors become a line on stderr and an exit status."""

    @functools.wraps(work)
    def command(**options: object) -> None:
        try:
            ended = work(**options)
            status = run_on_loop(ended) if inspect.iscoroutine(ended) else ended
        except BrokenPipeError:
            seen_enough()
            status = 0
        except Exception as error:
            if (known := status_of(error)) is None:
                raise
            tell(error)
            raise typer.Exit(known) from error
        raise typer.Exit(status or 0)

    return command


_settings = typer.Typer(no_args_is_help=True, help="Look at the settings.")
_settings.callback()(lambda: None)
for group, panel, commands in (
    (app, "Servers", (servers.serve, servers.blob_server, servers.api_server)),
    (app, "Objects", (objects.put, objects.get, objects.ls, objects.stat, objects.rm)),
    (app, "Maintenance", (replicate.replicate, replicate.drain, replicate.rejoin, status.status)),
    (app, "Maintenance", (maintenance.check, maintenance.scrub, maintenance.gc)),
    (app, "Maintenance", (maintenance.compact, maintenance.reindex)),
    (app, "Maintenance", (archive.export, archive.import_)),
    (_settings, None, (config.show,)),
):
    for each in commands:
        name = each.__name__.strip("_").replace("_", "-")
        group.command(name, help=_filled(each.__doc__), rich_help_panel=panel)(_command(each))
app.add_typer(_settings, name="config", rich_help_panel="Maintenance")


def run() -> None:
    """Run the command of `sys.argv`."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        seen_enough()
