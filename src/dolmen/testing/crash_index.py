"""The index of a volume on a simulated disk.

A dictionary with the guarantee RocksDB gives without its write-ahead log: after a kill or a power
cut it is as some earlier `apply` left it, none older than the last `flush`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy

from dolmen.stores.volume.index import Changes, TailIndex


class Kept:
    """What is on disk of an index, and what was applied since."""

    def __init__(self) -> None:
        self.flushed = TailIndex()
        self.applied: list[Changes] = []

    def keep(self, batches: int) -> None:
        """Let only so many of the batches be there, and on disk."""
        for batch in self.applied[:batches]:
            self.flushed.apply(batch)
        self.applied.clear()

    def crash(self, rng: random.Random) -> None:
        """Be as of some earlier `apply`."""
        self.keep(rng.randint(0, len(self.applied)))


class SimulatedIndex(TailIndex):
    """An open index, whose changes are operations of the disk: each is made within a `step`."""

    def __init__(self, step: Callable[[], AbstractContextManager[None]], kept: Kept) -> None:
        super().__init__(deepcopy(kept.flushed))
        for batch in kept.applied:
            super().apply(batch)
        self._step, self._kept = step, kept

    def apply(self, changes: Changes) -> None:
        """See `Index`."""
        with self._step():
            super().apply(changes)
            self._kept.applied.append(dict(changes))

    def flush(self) -> None:
        """See `Index`."""
        with self._step():
            self._kept.keep(len(self._kept.applied))

    def close(self) -> None:
        """See `Index`."""
