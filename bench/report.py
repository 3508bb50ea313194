"""Figures as tables, and runs as JSON files that can be compared."""

from __future__ import annotations

import json
from dataclasses import asdict
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
    """One figure as soon as it is there, with its note."""
    parts = [_samples(line), _yardstick(line), line.measured.note]
    text = "; ".join(filter(None, parts))
    reached = f" [{line.reached}]" if line.reached else ""
    console.print(f"{line.figure.name}: {text}{reached}", highlight=False, markup=False)


def show(lines: list[Line]) -> None:
    """The table."""
    table = _table("measured (min to max)", "yardstick", "value", "at least", "aim", "reached")
    for line in lines:
        figure, value = line.figure, median(line.values) if line.values else None
        numbers = map(number, (value, figure.at_least, figure.aim))
        cells = (_samples(line), _yardstick(line), *numbers, line.reached)
        table.add_row(figure.name, *cells, style=_STYLE[line.reached])
    console.print(table)


def _table(*titles: str) -> Table:
    table = Table("figure", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right")
    return table


def _yardstick(line: Line) -> str:
    found = line.measured.against
    return f"{line.figure.against} {number(median(found))} {line.figure.unit}" if found else ""


def _samples(line: Line) -> str:
    samples, unit = line.measured.samples, line.figure.unit
    if not samples:
        return "not measured"
    spread = f" ({number(min(samples))} to {number(max(samples))})" if len(samples) > 1 else ""
    return f"{number(median(samples))} {unit}{spread}"


def number(value: float | None) -> str:
    """A number with three figures that count, and no more than needed."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(path: Path, facts: dict[str, Any], lines: list[Line], *, long: bool) -> None:
    """Keep a run as JSON."""
    figures = {
        line.figure.name: asdict(line)
        | {"value": median(line.values) if line.values else None, "reached": line.reached}
        for line in lines
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"machine": facts, "long": long, "figures": figures}
    path.write_text(json.dumps(run, indent=1) + "\n")


def compare(before: Path, after: Path) -> None:
    """Two saved runs beside each other, by the values the marks are for."""
    runs = [json.loads(path.read_text()) for path in (before, after)]
    for run in runs:
        show_machine(run["machine"])
    first, second = (run["figures"] for run in runs)
    table = _table("of", "before", "after", "change", "reached")
    for name, shown in (first | second).items():
        figure = shown["figure"]
        was, now = (run.get(name, {}).get("value") for run in (first, second))
        change, style = "", None
        if was and now:
            change = f"{now / was - 1:+.0%}"
            better = (now > was) == ((figure["aim"] or 1) > (figure["at_least"] or 0))
            style = None if abs(now / was - 1) < _NOISE else "green" if better else "red"
        table.add_row(
            name,
            f"ratio to {figure['against']}" if figure["against"] else figure["unit"],
            number(was),
            number(now),
            change,
            second.get(name, {}).get("reached", ""),
            style=style,
        )
    console.print(table)
    console.print(f"Differences under {_NOISE:.0%} are noise.", highlight=False)
