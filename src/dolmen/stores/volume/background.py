"""Compaction in the background: now and then, in small steps, within a bandwidth."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator

import lmdb

from dolmen.errors import DolmenError, Unavailable
from dolmen.pace import Pace
from dolmen.stores.volume.compact import Compactor, Step
from dolmen.stores.volume.index import Index

_log = logging.getLogger("dolmen.volume")
BANDWIDTH = 32 << 20
"""Bytes read and written in a second, at most."""
EVERY = 60.0
"""Seconds from the end of one pass to the next."""
NOTE = "compaction"


class Background:
    """Takes the steps of a compactor whenever it is asked to. For one thread."""

    def __init__(self, compactor: Compactor, index: Index, *, bandwidth: float = BANDWIDTH) -> None:
        self._compactor, self._index = compactor, index
        self._bandwidth = bandwidth
        self._steps: Generator[Step] | None = None
        self._due = time.monotonic() + EVERY
        self._won = 0

    def step(self) -> float:
        """Go a step on, if it is time; returns the seconds until the next one is."""
        wait = self._due - time.monotonic()
        if wait > 0:
            return wait
        if self._steps is None:
            self._steps, self._pace, self._won = self._compactor.steps(), Pace(self._bandwidth), 0
        try:
            step = next(self._steps)
        except StopIteration:
            self._end()
        except (DolmenError, OSError, lmdb.Error) as error:
            if not isinstance(error, Unavailable):  # else another process is at it
                _log.error("compaction stopped, and is tried again: %s", error)
            self._end()
        else:
            self._won += step.dropped - step.carried
            self._due = time.monotonic() + self._pace.delay(step.moved)
        return max(self._due - time.monotonic(), 0.0)

    def _end(self) -> None:
        self._steps = None
        self._due = time.monotonic() + EVERY
        if self._won:
            note_won(self._index, self._won)

    def close(self) -> None:
        """Give up what is under way; all that was carried so far stands."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def note_won(index: Index, won: int) -> None:
    """Note in the volume when it was last compacted, and how many bytes that won."""
    index.note(NOTE, json.dumps({"at": int(time.time()), "won": won}).encode())
