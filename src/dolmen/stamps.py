"""Stamps: hybrid logical time, which orders the writes of one name everywhere.

A stamp is 64 bits: 48 of milliseconds since 1970 and 16 of a counter (Kulkarni,
Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks", 2014). It is given by
whoever writes first and kept by every copy; the higher stamp wins.

One bad clock must not push everybody's into the future: a clock only follows stamps of up
to an hour ahead of its own wall clock. A stamp that must exceed one further ahead (the
blob's current stamp, given by a clock that was wrong) is that one plus one, so such a blob
can still be deleted and uploaded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dolmen.errors import InvalidName, Unavailable

COUNTER_BITS = 16
MAX_STAMP = (1 << 64) - 2
"""The highest valid stamp: above every valid one there is room for another 64-bit number."""
AHEAD_MS = 3_600_000
"""How far ahead of its wall clock a clock may run, in milliseconds: one hour."""


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
    if len(text) == 16 and not text.strip("0123456789abcdef"):
        stamp = int(text, 16)
        if stamp <= MAX_STAMP:
            return stamp
    raise InvalidName(f"{text[:40]!r} is not a valid stamp: 16 lower-case hex digits")


class Clock:
    """Gives stamps.

    Each is higher than those it gave or saw before, as long as the wall clock does not go
    back by more than an hour: a stamp of a name that matters is passed as `above`.
    `wall` returns milliseconds since 1970; tests inject their own. A clock belongs to one
    event loop or thread.
    """

    def __init__(self, wall: Callable[[], int] = wall_ms) -> None:
        self._wall = wall
        self.last = 0

    def next(self, above: int = 0) -> int:
        """A stamp higher than `above`; raises `Unavailable` where that is no valid stamp."""
        wall = self._wall()
        last = self.last
        if milliseconds(last) > wall + AHEAD_MS:  # the wall clock was set back since
            last = 0
        last = max(wall << COUNTER_BITS, last + 1)
        stamp = max(last, above + 1)
        if stamp > MAX_STAMP:
            raise Unavailable(
                f"no stamp above {format_stamp(stamp - 1)} is left: set this machine's clock "
                "right, or remove every copy of this name, which a wrong clock wrote"
            )
        self.last = last
        self.observe(stamp)
        return stamp

    def observe(self, stamp: int) -> None:
        """Move up to a stamp seen elsewhere, unless it is an hour ahead."""
        if stamp > self.last and milliseconds(stamp) < self._wall() + AHEAD_MS:
            self.last = stamp
