"""What a figure is: its unit, what it is held against, its marks, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


class NotMeasured(Exception):  # noqa: N818 - it reads as what it is
    """Something a figure needs is not there; the message says what to do about it."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Where `against` names something, the marks are for the ratio to it, measured in
    turns in the same run. With `at_least` above `aim`, lower is better. Without marks the
    figure is there to be known.
    """

    name: str
    unit: str
    at_least: float | None = None
    aim: float | None = None
    against: str | None = None
    long: bool = False
    """Only in the long form."""


@dataclass
class Measured:
    """The samples of one figure, in the order they were taken, and those of its yardstick."""

    samples: list[float]
    against: list[float] = field(default_factory=list)
    """Each measured just before the sample at the same place."""
    note: str = ""


@dataclass
class Line:
    """A figure with what was measured; without samples, the note says why."""

    figure: Figure
    measured: Measured

    @property
    def values(self) -> list[float]:
        """What the marks are about: the ratios of neighbouring samples, or the samples."""
        if self.figure.against is None:
            return self.measured.samples
        return [a / b for a, b in zip(self.measured.samples, self.measured.against, strict=False)]

    @property
    def reached(self) -> str:
        """Which mark the median reaches: "aim", "at least", "below", "?" or, without marks, ""."""
        values, least, aim = self.values, self.figure.at_least, self.figure.aim
        if not values:
            return "?"
        if least is None or aim is None:
            return ""
        sign = -1 if least > aim else 1
        for mark, name in ((aim, "aim"), (least, "at least")):
            if sign * median(values) >= sign * mark:
                return name
        return "below"


@dataclass(frozen=True)
class Bench:
    """One run: where its data goes, and how thorough it is."""

    folder: Path
    long: bool
    rounds: int = 3
    seconds: int = 3
    """Of one run of wrk."""


Run = Callable[[Bench], Iterator[Measured]]
SUBJECTS: list[tuple[tuple[Figure, ...], Run]] = []
"""Functions with the figures they measure, and yield in this order."""


def measures(*figures: Figure) -> Callable[[Run], Run]:
    """Register a function as what measures these figures."""

    def register(run: Run) -> Run:
        SUBJECTS.append((figures, run))
        return run

    return register
