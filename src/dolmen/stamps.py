"""Stamps: hybrid logical time, which orders the writes of one name everywhere.

A stamp is 64 bits: 48 of milliseconds since 1970 and 16 of a counter (Kulkarni,
Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks", 2014). It is given by
whoever writes first and kept by every copy; the higher stamp wins.

Whoever gives stamps never gives one more than an hour ahead of its own wall
clock, so one bad clock cannot push everybody's far into the future. Stamps that
already stand in a copy are always taken as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dolmen.errors import InvalidName, Unavailable

COUNTER_BITS = 16
MAX_STAMP = (1 << 64) - 1
HORIZON_MS = 3_600_000  # one hour


def wall_ms() -> int:
    """The wall clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def milliseconds(stamp: int) -> int:
    """The wall time in a stamp, in milliseconds since 1970."""
    return stamp >> COUNTER_BITS


def format_stamp(stamp: int) -> str:
    """A stamp as it is written on the wire: 16 lower-case hex digits."""
    return f"{stamp:016x}"


def parse_stamp(text: str) -> int:
    """The stamp that `format_stamp` wrote; raises `InvalidName` for anything else."""
    if len(text) != 16 or text.strip("0123456789abcdef"):
        raise InvalidName(f"{text[:40]!r} is no stamp: a stamp is 16 lower-case hex digits")
    return int(text, 16)


class Clock:
    """Gives stamps, each higher than every one it gave or saw.

    `wall` returns milliseconds since 1970; tests inject their own. A clock
    belongs to one event loop or thread.
    """

    def __init__(self, wall: Callable[[], int] = wall_ms) -> None:
        self._wall = wall
        self.last = 0

    def next(self, above: int = 0) -> int:
        """A stamp higher than every earlier one and than `above`.

        Raises `Unavailable` when that would be more than an hour ahead of the
        wall clock: `above` then came from a machine whose clock is wrong, and
        only a person can say whose.
        """
        wall = self._wall()
        stamp = max(wall << COUNTER_BITS, self.last + 1, above + 1)
        if milliseconds(stamp) > wall + HORIZON_MS:
            ahead = (milliseconds(stamp) - wall) / 3_600_000
            what = (
                f"this machine's clock has gone back by {ahead:.1f} hours since it last wrote"
                if stamp == self.last + 1
                else f"what stands was written by a clock {ahead:.1f} hours ahead of this machine's"
            )
            raise Unavailable(
                f"{what}; nothing was stored: set the clocks (NTP), or wait and repeat"
            )
        self.last = stamp
        return stamp

    def observe(self, stamp: int) -> None:
        """Move up to a stamp seen elsewhere, unless it is over an hour ahead."""
        if stamp > self.last and milliseconds(stamp) <= self._wall() + HORIZON_MS:
            self.last = stamp
