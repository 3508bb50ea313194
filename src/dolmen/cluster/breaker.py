"""Which members to ask last: those that failed, those that are full, those that missed writes.

A member that failed `FAILURES` times in a row (it could not be asked, or did not say how
a write went) rests for `REST` seconds; then one request asks it in its turn again, and its
answer decides. Meanwhile others ask it only when nothing better is left:

- a write that would have fewer than `write_copies` without it, unless it fails slowly: nobody
  waits for one that hangs as long as there are `min_copies`;
- a read that some other member failed, and, unless it fails slowly, one to which all others
  said "no". A read does not wait for a hanging member only to hear "no": it fails with
  `Unavailable` in place of `NotFound`.

Such a member, and one that a delete was acknowledged without, is *behind*: it may hold what
was deleted meanwhile. Reads ask it after all others, so that any tombstone they have overrules
its copy, until two rounds of repair have ended well since: the second began after it was back.

A member that is full, or takes no writes, answers at once, and serves reads and deletes: for
`FULL_REST` seconds writes go to it after all others.

While all is well, nothing here is called: `troubles` is empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dolmen.cluster.groups import Failures, Member
from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.store import Condition

FAILURES = 5
REST = 10.0
FULL_REST = 10.0
HANGS = 1.0
"""Seconds from which a failure is a slow one."""
ROUNDS = 2
"""Rounds of repair after which a member is no longer behind."""


@dataclass(slots=True)
class Trouble:
    """What is wrong with one member. Times as `now` gives them, 0 for never."""

    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    full_until: float = 0.0
    hangs: bool = False
    """Its last failure was a slow one."""
    behind: int | None = None
    """The rounds of repair that had ended when it was last away; None when it is not behind."""


class Breaker:
    """What the members' last answers said of them. `now` is in seconds, from any start."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.troubles: dict[str, Trouble] = {}
        """By the member's name; a member without problems is not in it."""
        self.rounds = 0
        """How many rounds of repair have left every server in sync, since any start."""

    def failed(self, member: Member, error: DolmenError, began: float | None = None) -> None:
        """Note that a member failed to do what it was asked, at `began` where that is known."""
        if isinstance(error, (Unavailable, OutcomeUnknown)):
            trouble = self.troubles.setdefault(member.name, Trouble())
            trouble.failures += 1
            if began is not None:
                trouble.hangs = self.now() - began >= HANGS
            if trouble.failures >= FAILURES:
                trouble.rests_until = self.now() + REST
            if trouble.failures >= FAILURES or trouble.behind is not None:
                trouble.behind = self.rounds
            return
        if isinstance(error, (Full, ReadOnly)) and member.store.capabilities.stamps:
            self._full(member)  # one without stamps refuses single writes for good
        if self.troubles:
            self.answered(member)

    def missed(self, member: str) -> None:
        """Note that a delete was acknowledged without this member."""
        self.troubles.setdefault(member, Trouble()).behind = self.rounds

    def answered(self, member: Member, *, wrote: bool = False) -> None:
        """Note that a member answered, with what it has or with a "no"."""
        trouble = self._of(member)
        trouble.failures, trouble.rests_until = 0, 0.0
        if wrote:
            trouble.full_until = 0.0
        self._forget(member)

    def says(self, member: Member, condition: Condition) -> None:
        """Note what a member says of itself. That it can be asked this is no sign of the rest."""
        if not condition.writable:
            self._full(member)
        else:
            self._of(member).full_until = 0.0
            self._forget(member)

    def _of(self, member: Member) -> Trouble:
        return self.troubles.get(member.name) or Trouble()

    def _full(self, member: Member) -> None:
        self.troubles.setdefault(member.name, Trouble()).full_until = self.now() + FULL_REST

    def _forget(self, member: Member) -> None:
        """Forget a member that has no trouble any more."""
        if not (self._of(member).failures or self._is_behind(member) or self._is_full(member)):
            self.troubles.pop(member.name, None)

    def _is_full(self, member: Member) -> bool:
        return self._of(member).full_until > self.now()

    def _is_behind(self, member: Member) -> bool:
        trouble = self._of(member)
        if trouble.behind is not None:
            if self.rounds >= trouble.behind + ROUNDS:
                trouble.behind = None
            else:  # repair may have begun to count anew
                trouble.behind = min(trouble.behind, self.rounds)
        return trouble.behind is not None

    def state(self, member: Member) -> str:
        """`ok`; `stale`: not used; `failing`: asked last, for anything but a delete; `behind`:
        read last; `full`: written to last.
        """
        if member.stale is not None:
            return "stale"
        if self._of(member).failures >= FAILURES:
            return "failing"
        if self._is_behind(member):
            return "behind"
        return "full" if self._is_full(member) else "ok"

    def hangs(self, member: Member) -> bool:
        """Whether a member that fails takes its time to."""
        return self._of(member).hangs

    def writing(self, order: Sequence[Member], resting: list[Member]) -> Iterator[Member]:
        """Whom to write to, in turn; who rests goes onto that list."""
        return self._awake(sorted(order, key=self._is_full), resting)

    def reading(self, order: Sequence[Member], failures: Failures) -> Iterator[Member]:
        """Whom to ask, in turn. Who is not to be waited for is added to the failures met."""
        resting: list[Member] = []
        yield from self._awake(sorted(order, key=self._is_behind), resting)
        all_matter = failures or len(resting) == len(order)
        for member in resting:
            if all_matter or not self.hangs(member):
                yield member
            else:
                left = Unavailable("skipped for a while after repeated failures")
                failures.append((member.name, left))

    def _awake(self, order: Sequence[Member], resting: list[Member]) -> Iterator[Member]:
        for member in order:
            trouble = self._of(member)
            if trouble.failures >= FAILURES:
                if trouble.rests_until > self.now():
                    resting.append(member)
                    continue
                trouble.rests_until = self.now() + REST  # this request tries it, no other
            yield member
