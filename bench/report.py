"""Figures as tables, and runs as JSON files that can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import Line

_STYLE = {"aim": "green", "at least": "yellow", "below": "red", "?": "dim", "": ""}
_NOISE = 0.1
"""Changes below this say nothing."""
_plain = Console()
console = _plain if _plain.is_terminal else Console(width=170)


def show_machine(facts: dict[str, Any]) -> None:
    """Where and on what this is measured."""
    console.print(
        f"commit {facts['commit']}, {facts['when']}; {facts['processors']} processors "
        f"({facts['processor']}), load {facts['load']}; {facts['system']}, "
        f"Python {facts['python']}; {facts['file_system']}, flush of 4 KiB {facts['flush_ms']} ms",
        highlight=False,
    )


def show_line(line: Line) -> None:
    """One figure as soon as it is there."""
    if line.measured is None:
        text = f"not measured: {line.missing}"
    else:
        text = _measured(line) + (f"; {line.measured.note}" if line.measured.note else "")
    console.print(f"{line.figure.name}: {text}", highlight=False, markup=False)


def show(lines: list[Line]) -> None:
    """The table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("figure", "measured (min to max)", "yardstick", "value", "at least", "aim"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    table.add_column("reached")
    for line in lines:
        figure, values = line.figure, line.values
        table.add_row(
            figure.name,
            _samples(line.measured.samples, figure.unit) if line.measured else "-",
            f"{figure.against} {_yardstick(line)}" if figure.against else "",
            number(median(values)) if values else "-",
            number(figure.at_least) if figure.at_least is not None else "",
            number(figure.aim) if figure.aim is not None else "",
            line.reached if line.measured else "not measured",
            style=_STYLE[line.reached],
        )
    console.print(table)
    for line in lines:
        note = line.measured.note if line.measured else f"not measured: {line.missing}"
        if note:
            console.print(f"{line.figure.name}: {note}", highlight=False, markup=False)


def _measured(line: Line) -> str:
    assert line.measured is not None
    text = _samples(line.measured.samples, line.figure.unit)
    if line.figure.against and line.values:
        ratio = number(median(line.values))
        text += f"; {line.figure.against} {_yardstick(line)}; ratio {ratio}"
    return f"{text} [{line.reached}]" if line.reached else text


def _yardstick(line: Line) -> str:
    found = line.measured.against if line.measured else []
    return f"{number(median(found))} {line.figure.unit}" if found else "-"


def _samples(samples: list[float], unit: str) -> str:
    if len(samples) == 1:
        return f"{number(samples[0])} {unit}"
    low, high = number(min(samples)), number(max(samples))
    return f"{number(median(samples))} {unit} ({low} to {high})"


def number(value: float) -> str:
    """A number with three figures that count, and no more than needed."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def save(path: Path, facts: dict[str, Any], lines: list[Line], *, long: bool) -> None:
    """Keep a run as JSON."""
    run = {"machine": facts, "long": long, "figures": [line.saved() for line in lines]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")


def compare(before: Path, after: Path) -> None:
    """Two saved runs beside each other, by the values the marks are for."""
    runs = [json.loads(path.read_text()) for path in (before, after)]
    for run in runs:
        show_machine(run["machine"])
    first, second = ({each["name"]: each for each in run["figures"]} for run in runs)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("figure", "of", "before", "after", "change", "reached"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for name, shown in (first | second).items():
        was, now = (run.get(name, {}).get("value") for run in (first, second))
        change, style = "", None
        if was and now:
            change = f"{now / was - 1:+.0%}"
            better = (now > was) == ((shown["aim"] or 1) > (shown["at_least"] or 0))
            style = None if abs(now / was - 1) < _NOISE else "green" if better else "red"
        table.add_row(
            name,
            f"ratio to {shown['yardstick']}" if shown["yardstick"] else shown["unit"],
            number(was) if was is not None else "-",
            number(now) if now is not None else "-",
            change,
            second.get(name, {}).get("reached", "-"),
            style=style,
        )
    console.print(table)
    console.print(f"Differences under {_NOISE:.0%} are noise.", highlight=False)
