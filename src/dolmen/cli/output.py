"""What commands print: lines for people, JSON for programs, bars for those who wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Show = Callable[..., None]
"""Called with how much is done, and where they are known, of how much, and a word on it."""


def emit(value: object) -> None:
    """A line of JSON on stdout; errors as their text, file names that are no UTF-8 escaped."""
    print(json.dumps(value, separators=(",", ":"), default=str), flush=True)


def show(facts: object, lines: Iterable[str], *, as_json: bool) -> None:
    """A report: one line of JSON for programs, or lines for people."""
    if as_json:
        emit(facts)
        return
    for line in lines:
        print(line, flush=True)


def readable(size: int) -> str:
    """A number of bytes for people: `1.4 MiB`."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


@contextmanager
def progress_bar(name: str, *, unit: str = "") -> Iterator[Show]:
    """A bar on stderr while the block lasts; nothing is shown where that is no terminal.

    With `unit="bytes"` sizes and a speed are shown, else numbers and the word.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich import progress
    from rich.console import Console

    columns: list[progress.ProgressColumn] = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
    ]
    if unit == "bytes":
        columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    else:
        columns += [progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[said]}")]
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, said="")
        yield lambda done, total=None, said="": bar.update(
            task, completed=done, total=total, said=said
        )
