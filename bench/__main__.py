"""`python -m bench`: measure, print, save, compare."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from bench.figures import SUBJECTS, Bench, Figure, Line, Measured, NotMeasured, Run
from bench.machine import machine
from bench.report import compare, save, show, show_line, show_machine

MODULES = ("small", "volume", "large", "memory", "replication", "latency", "upkeep", "engines")
"""Their figures, in the order of the table."""
RESULTS = Path("bench", "results")
"""Under the current directory, whose file system is the one that is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the long forms: up to an hour")
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="figures with this in them")
    parser.add_argument("--json", metavar="FILE", type=Path, help="save the run")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), type=Path, help="compare two saved runs"
    )
    options = parser.parse_args()
    if options.compare:
        compare(*options.compare)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    RESULTS.mkdir(parents=True, exist_ok=True)
    for module in MODULES:
        import_module(f"bench.{module}")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="run-", dir=RESULTS.resolve()) as folder:
        facts = machine(Path(folder))
        show_machine(facts)
        try:
            for at, (figures, run) in enumerate(_chosen(options.only, long=options.long)):
                own = Path(folder, str(at))
                own.mkdir()
                for line in _measure(figures, run, Bench(own, options.long)):
                    lines.append(line)
                    show_line(line)
                shutil.rmtree(own)
        except KeyboardInterrupt:
            print("\ninterrupted; this is what there is", file=sys.stderr)
    show(lines)
    if options.json:
        save(options.json, facts, lines, long=options.long)


def _chosen(only: str, *, long: bool) -> Iterator[tuple[list[Figure], Run]]:
    for figures, run in SUBJECTS:
        wanted = [figure for figure in figures if long or not figure.long]
        if any(only.lower() in figure.name.lower() for figure in wanted):
            yield wanted, run


def _measure(figures: list[Figure], run: Run, bench: Bench) -> Iterator[Line]:
    left = list(figures)
    missing = ""
    try:
        for measured in run(bench):
            yield Line(left.pop(0), measured)
    except NotMeasured as error:
        missing = str(error)
    except Exception as error:  # noqa: BLE001 - one that fails must not cost the others
        missing = f"{type(error).__name__}: {error}"
    for figure in left:
        yield Line(figure, Measured([], note=missing))


if __name__ == "__main__":
    main()
