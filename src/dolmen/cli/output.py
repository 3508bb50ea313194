"""What commands print: lines for people, JSON for programs, bars for those who wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dolmen.replication import Report


def emit(value: object) -> None:
    """A line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def readable(size: int) -> str:
    """A number of bytes for people: `1.4 MiB`."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


@contextmanager
def transfer_bar(name: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar for bytes moved, on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task(name, total=None)
        yield lambda moved, total: progress.update(task, completed=moved, total=total)


@contextmanager
def report_bar(name: str) -> Iterator[Callable[[Report], None] | None]:
    """A bar for a run of replication, on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TextColumn("compared, {task.fields[copied]} copied"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(name, total=None, copied=0)

        def show(report: Report) -> None:
            progress.update(
                task, completed=report.compared, total=report.total, copied=report.copied
            )

        yield show


@contextmanager
def counting_bar(name: str) -> Iterator[Callable[[int, int | None, str], None] | None]:
    """A bar for things counted, with a word on them, on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TextColumn("{task.fields[said]}"), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task(name, total=None, said="")
        yield lambda done, total, said: progress.update(
            task, completed=done, total=total, said=said
        )
