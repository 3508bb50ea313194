"""What a run of replication did, and did not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dolmen.errors import DolmenError

EXAMPLES = 5


@dataclass(slots=True)
class Refused:
    """What was not copied for one reason: how many, and the first few names with their errors."""

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
    """Found by the comparison, and gone from the source when their turn came."""
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

    def refuse(self, name: str, error: DolmenError, *, reason: str = "") -> None:
        """Count a blob that was not copied."""
        self.refused.setdefault(reason or type(error).__name__, Refused()).add(name, str(error))


Progress = Callable[[Report], None]
"""Called with the report so far after every batch, for a progress bar."""
