"""What every part of a cluster knows: its members, their places and how they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dolmen.cluster.breaker import Breaker
from dolmen.cluster.groups import Group
from dolmen.cluster.hedging import Hedging
from dolmen.cluster.mending import Mending
from dolmen.cluster.placement import Placement
from dolmen.stamps import Clock


class Members:
    """Groups of stores, and what their last answers said of them.

    `now` gives seconds from any start: for how long members are left alone.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        clock: Clock | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.groups = tuple(groups)
        self.members = tuple(member for group in groups for member in group.members)
        self.placement = Placement(groups)
        self.clock = clock or Clock()
        self.breaker = Breaker(now)
        self.hedging = Hedging(now)
        self.mending = Mending(self.breaker, now)
