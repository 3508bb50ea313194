"""Hedged reads: a second member is asked when one that is often late keeps a reader waiting.

After Dean and Barroso, "The Tail at Scale" (2013). A *gray* member answers most requests as fast
as the others, and some very late. While there is none, a read costs two looks at the clock. Of
every `WINDOW` answers of small blobs the 95th percentile is taken. A member whose answers took more
than three times that (and `LEAST`) `LATE` times in one window is gray for `GRAY` seconds: a read
that it has not answered within three times that percentile is asked of the next one too, and
the first good answer counts, as if the other could not be asked. At most `SHARE` of all
reads are asked twice. Were they asked at the percentile itself, reads that are only a little late
would use that share up. Chunks are not hedged: they are fetched ahead, and take long by their size.

Read first: `dolmen.cluster.breaker`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence

from dolmen.cluster.fan_out import heard
from dolmen.cluster.groups import Member
from dolmen.errors import NotFound
from dolmen.names import is_chunk_name
from dolmen.store import Blob

WINDOW = 512
LATE = 3
LEAST = 0.02
GRAY = 30.0
SHARE = 0.05
TIMED = 65_536
"""Bytes up to which the time of an answer says something of its member."""


class Hedging:
    """The recent times of a cluster's reads. `now` is in seconds, from any start."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.gray: dict[str, float] = {}
        """Until when, by the member's name."""
        self.hedged = 0
        """Reads for which a second member was asked."""
        self._times: list[float] = []
        self._late: Counter[str] = Counter()
        self._patience = math.inf
        self._left = 0.0

    def took(self, member: Member, seconds: float) -> None:
        """Note the time of a good answer of a small blob."""
        self._times.append(seconds)
        if seconds > self._patience and seconds > LEAST:
            self._late[member.name] += 1
        if len(self._times) == WINDOW:
            self._review()

    def _review(self) -> None:
        now = self.now()
        self.gray = {name: until for name, until in self.gray.items() if until > now}
        self.gray |= {name: now + GRAY for name, count in self._late.items() if count >= LATE}
        self._patience = 3 * sorted(self._times)[WINDOW * 95 // 100]
        self._left = min(self._left, SHARE * WINDOW) + SHARE * WINDOW
        self._times.clear()
        self._late.clear()

    async def race(self, order: Sequence[Member], name: str) -> tuple[Member, Blob] | None:
        """Where the first member is gray, ask it, and when that takes too long the second as well.

        None when it is not, or none of those asked had the blob: nothing is known then.
        """
        if len(order) < 2 or order[0].name not in self.gray or is_chunk_name(name):
            return None
        first, second = order[:2]
        if first.stale or second.stale:
            return None
        began = self.now()
        asked = {_begin(first, name): first}
        try:
            answered, _ = await asyncio.wait(asked, timeout=self._patience)
            if not answered and self._left >= 1:
                self._left -= 1
                self.hedged += 1
                asked[_begin(second, name)] = second
            while asked:
                answered, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                if any(isinstance(task.exception(), NotFound) for task in answered):
                    return None  # it may overrule what the other one has
                for task in answered:
                    member = asked.pop(task)
                    if task.exception() is None:
                        # If the second was faster the first is late, however late it will be.
                        late = math.inf if member is second else self.now() - began
                        self.took(first, late)
                        return member, task.result()
        finally:
            for task in asked:
                task.cancel()
        return None


def _begin(member: Member, name: str) -> asyncio.Future[Blob]:
    task = asyncio.ensure_future(member.store.get(name))
    task.add_done_callback(heard)
    return task
