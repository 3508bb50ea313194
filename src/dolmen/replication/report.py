"""What was done and what was not: by a run between two stores, and by a round over a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dolmen.errors import DolmenError
from dolmen.record import Kind
from dolmen.store import BlobInfo, Outcome

EXAMPLES = 5


@dataclass(slots=True)
class Refused:
    """What was not done for one reason: how many, and the first few names with their errors."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, why: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((name, why))


@dataclass(slots=True)
class Report:
    """Counts of one run, kept up to date while it goes on."""

    total: int | None = None
    """Entries of the source to be compared; None where a store keeps no digests to tell."""
    compared: int = 0
    """Entries of the source, tombstones included, that were compared with the destination."""
    copied: int = 0
    """Blobs and manifests written to the destination."""
    bytes: int = 0
    """Bytes of data in what was copied."""
    touched: int = 0
    """Blobs whose stamp and metadata were raised at the destination, without their data."""
    tombstones: int = 0
    """Deletes carried over."""
    vanished: int = 0
    """Not at the source any more when their turn came."""
    refused: dict[str, Refused] = field(default_factory=dict)
    """What could not be copied, by the kind of error."""
    stopped: DolmenError | None = None
    """Why the run ended early: a server that failed. None when it ran to its end."""
    failing: str | None = None
    """With `stopped`: "source" or "destination", whichever failed."""

    @property
    def complete(self) -> bool:
        """Whether the destination now holds everything the comparison found at the source."""
        return self.stopped is None and not self.refused

    def wrote(self, info: BlobInfo, outcome: Outcome) -> None:
        """Count a write that was answered."""
        if outcome is Outcome.UNCHANGED:
            self.touched += 1
        elif outcome is Outcome.CREATED and info.kind == Kind.TOMBSTONE:
            self.tombstones += 1
        elif outcome is Outcome.CREATED:
            self.copied += 1
            self.bytes += info.size

    def refuse(self, name: str, error: DolmenError, *, reason: str = "") -> None:
        """Count a blob that was not copied."""
        self.refused.setdefault(reason or type(error).__name__, Refused()).add(name, str(error))


Progress = Callable[[Report], None]
"""Called with the report so far after every batch, for a progress bar."""
PairProgress = Callable[[str, str, Report], None]
"""Called with source, destination and the report so far."""


@dataclass(slots=True)
class Dropped:
    """What became of the misplaced copies of one server."""

    removed: int = 0
    bytes: int = 0
    """Bytes of data in what was removed."""
    kept: int = 0
    """Copies that stay until every rightful server has a sound one."""


@dataclass(slots=True)
class Round:
    """What a round did."""

    runs: dict[tuple[str, str], Report] = field(default_factory=dict)
    """The runs that were needed, by source and destination."""
    failing: dict[str, str] = field(default_factory=dict)
    """Servers that failed or were not asked, and why; the stale ones among them."""
    stale: dict[str, str] = field(default_factory=dict)
    """Servers that missed a purge (`dolmen.replication.purge`)."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """What became of misplaced copies, by the server that had any."""
    purged: int = 0
    """Deletes forgotten."""

    @property
    def complete(self) -> bool:
        """Whether everything now is where it should be, and nowhere else."""
        return (
            not self.failing
            and all(run.complete for run in self.runs.values())
            and not any(dropped.kept for dropped in self.dropped.values())
        )
