"""Whom to ask last: members that failed many times in a row, and for writes those that are full.

A member that failed `FAILURES` times in a row (it could not be asked, or did not say how
a write went) rests for `REST` seconds; then one request asks it in its turn again, and its
answer decides. Meanwhile others ask it only when nothing better is left:

- a write that would have fewer than `write_copies` without it, unless it fails slowly: nobody
  waits for one that hangs as long as there are `min_copies`;
- a read that some other member failed, and, unless it fails slowly, one to which all others
  said "no". Nobody waits for one that hangs to say "no": the answer is then that not every member
  could be asked.

A member that is full, or takes no writes, answers at once, and serves reads and deletes: for
`FULL_REST` seconds writes go to it after all others.

While all is well, nothing here is called: `troubles` is empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dolmen.cluster.asking import Failures
from dolmen.cluster.groups import Member
from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.store import Condition

FAILURES = 5
REST = 10.0
FULL_REST = 10.0
HANGS = 1.0
"""Seconds from which a failure is a slow one."""


@dataclass(slots=True)
class Trouble:
    """What is wrong with one member. Times as `now` gives them, 0 for never."""

    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    full_until: float = 0.0
    hangs: bool = False
    """Its last failure was a slow one."""


class Breaker:
    """What the members' last answers said of them. `now` is in seconds, from any start."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.troubles: dict[str, Trouble] = {}
        """By the member's name; whoever answers and takes writes is not in it."""

    def failed(self, member: Member, error: DolmenError, began: float | None = None) -> None:
        """Note that a member failed to do what it was asked, at `began` where that is known."""
        if isinstance(error, (Unavailable, OutcomeUnknown)):
            trouble = self.troubles.setdefault(member.name, Trouble())
            trouble.failures += 1
            if began is not None:
                trouble.hangs = self.now() - began >= HANGS
            if trouble.failures >= FAILURES:
                trouble.rests_until = self.now() + REST
            return
        if refuses_writes(member, error):
            self._full(member)
        self.answered(member)

    def answered(self, member: Member, *, wrote: bool = False) -> None:
        """Note that a member answered, with what it has or with a "no"."""
        trouble = self.troubles.get(member.name)
        if trouble is not None:
            trouble.failures, trouble.rests_until = 0, 0.0
            if wrote or trouble.full_until <= self.now():
                del self.troubles[member.name]

    def told(self, member: Member, condition: Condition) -> None:
        """Note what a member says of itself. That it can be asked this is no sign of the rest."""
        trouble = self.troubles.get(member.name)
        if not condition.writable:
            self._full(member)
        elif trouble is not None:
            trouble.full_until = 0.0
            if not trouble.failures:
                del self.troubles[member.name]

    def _full(self, member: Member) -> None:
        self.troubles.setdefault(member.name, Trouble()).full_until = self.now() + FULL_REST

    def state(self, member: Member) -> str:
        """`ok`; `full`: written to last; `failing`: asked last, for anything but a delete."""
        trouble = self.troubles.get(member.name)
        if trouble is None:
            return "ok"
        if trouble.failures >= FAILURES:
            return "failing"
        return "full" if trouble.full_until > self.now() else "ok"

    def hangs(self, member: Member) -> bool:
        """Whether a member that fails takes its time to."""
        trouble = self.troubles.get(member.name)
        return trouble is not None and trouble.hangs

    def writing(self, order: Sequence[Member], resting: list[Member]) -> Iterator[Member]:
        """Whom to write to, in turn; who rests goes onto that list."""
        full = []
        for member in self._awake(order, resting):
            trouble = self.troubles.get(member.name)
            if trouble is not None and trouble.full_until > self.now():
                full.append(member)
            else:
                yield member
        yield from full

    def reading(self, order: Sequence[Member], failures: Failures) -> Iterator[Member]:
        """Whom to ask, in turn. Who is not to be waited for is added to the failures met."""
        resting: list[Member] = []
        yield from self._awake(order, resting)
        all_matter = failures or len(resting) == len(order)
        for member in resting:
            if all_matter or not self.hangs(member):
                yield member
            else:
                left = Unavailable("it failed many times and is left alone for a while")
                failures.append((member.name, left))

    def _awake(self, order: Sequence[Member], resting: list[Member]) -> Iterator[Member]:
        for member in order:
            trouble = self.troubles.get(member.name)
            if trouble is not None and trouble.failures >= FAILURES:
                if trouble.rests_until > self.now():
                    resting.append(member)
                    continue
                trouble.rests_until = self.now() + REST  # this request tries it, no other
            yield member


def refuses_writes(member: Member, error: DolmenError) -> bool:
    """Whether an error says that a member takes no writes now.

    A store without stamps is no such case: it refuses single writes for good.
    """
    return isinstance(error, (Full, ReadOnly)) and member.store.capabilities.stamps
