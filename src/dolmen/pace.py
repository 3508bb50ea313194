"""A limit on bytes per second, for work in the background."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

_BURST = 0.1
"""Seconds of unused time that may be made up for."""
_NICE = 10


def give_way() -> None:
    """Let whoever serves go first: from now on this process has a tenth of a processor's weight."""
    os.nice(_NICE)


def stand_back() -> None:
    """Give way, and only take processor time that nobody else wants (SCHED_IDLE, sched(7)).

    Not for work that holds locks which whoever serves may wait for.
    """
    give_way()
    with suppress(OSError):  # where that is not allowed, the priority has to do
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Pace:
    """Spreads work over time: at most `rate` bytes a second, or any number where it is None.

    It never waits itself: whoever does the work sleeps as long as it is told, in its own
    way. `now` gives seconds; tests inject their own.
    """

    def __init__(
        self, rate: float | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._now = now
        self._done_at = now()

    def delay(self, size: int) -> float:
        """Count `size` bytes; returns the seconds to wait before going on."""
        if self._rate is None:
            return 0.0
        now = self._now()
        self._done_at = max(self._done_at, now - _BURST) + size / self._rate
        return max(0.0, self._done_at - now)
