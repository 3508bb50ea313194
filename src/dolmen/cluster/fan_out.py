"""Asking several members at once. There is no other fan-out in a cluster.

Read first: `dolmen.cluster.groups`, `dolmen.cluster.breaker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from dolmen.cluster.breaker import Breaker
from dolmen.cluster.groups import Failures, Member, stale
from dolmen.errors import DolmenError, InvalidName, Unavailable

T = TypeVar("T")


class FanOut(Generic[T]):
    """Members asked at once; each that fails, or does not count, is replaced by the next.

    `answers` and `failures` come in the order in which they arrived, and add up over
    several runs.
    """

    def __init__(
        self,
        ask: Callable[[Member], Awaitable[T]],
        breaker: Breaker,
        counts: Callable[[Member], bool] | None = None,
    ) -> None:
        """`counts` is for writes, and says whether what this member keeps is a copy."""
        self._ask, self._breaker, self._counts = ask, breaker, counts
        self.answers: list[tuple[Member, T]] = []
        self.failures: Failures = []
        self.counted = 0
        """How many of those that answered count."""

    async def run(self, members: Iterable[Member], wanted: int) -> None:
        """Ask members in turn, `wanted` at once, until that many have answered or none is left.

        Raises what every member would answer. When it raises or is cancelled, what is under
        way is cancelled.
        """
        turns = iter(members)
        asked: dict[asyncio.Future[T], tuple[Member, float]] = {}
        try:
            while True:
                # All begin in one turn of the loop, so that their answers come in as few as can be.
                while len(asked) < wanted and (member := next(turns, None)) is not None:
                    if member.stale is None:
                        asked[self._begin(member)] = member, self._breaker.now()
                    else:
                        self.failures.append((member.name, stale(member)))
                if not asked:
                    return
                if len(asked) > 1:
                    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for asking in [each for each in asked if each.done()] or [*asked]:
                    wanted -= await self._answered(asking, *asked.pop(asking))
        finally:
            for asking in asked:
                if not asking.cancel():
                    heard(asking)

    def _begin(self, member: Member) -> asyncio.Future[T]:
        try:
            return asyncio.ensure_future(self._ask(member))
        except DolmenError as error:
            refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

    async def _answered(self, asking: asyncio.Future[T], member: Member, began: float) -> bool:
        """Take in an answer; whether it counts."""
        try:
            answer = await asking
        except InvalidName:  # to every member
            raise
        except DolmenError as error:
            self.failures.append((member.name, error))
            self._breaker.failed(member, error, began)
            return False
        self.answers.append((member, answer))
        if self._breaker.troubles:
            self._breaker.answered(member, wrote=self._counts is not None)
        counts = self._counts is None or self._counts(member)
        self.counted += counts
        return counts


async def each(
    members: Sequence[Member],
    ask: Callable[[Member], Awaitable[T]],
    patience: float | None = None,
) -> tuple[list[tuple[Member, T]], Failures]:
    """Ask every member of the state it is in: all at once, stale ones too.

    One that has not answered after `patience` seconds has failed.
    """

    async def one(member: Member) -> T | DolmenError:
        try:
            async with asyncio.timeout(patience):
                return await ask(member)
        except TimeoutError:
            return Unavailable(f"it did not answer within {patience:.0f} seconds")
        except DolmenError as error:
            return error

    answers: list[tuple[Member, T]] = []
    failures: Failures = []
    said = await asyncio.gather(*map(one, members))
    for member, answer in zip(members, said, strict=True):
        if isinstance(answer, DolmenError):
            failures.append((member.name, answer))
        else:
            answers.append((member, answer))
    return answers, failures


def heard(task: asyncio.Future[Any]) -> None:
    """Take note of how a task ended that nobody may wait for any more."""
    if not task.cancelled():
        task.exception()
