"""Asking several members at once. There is no other fan-out in a cluster.

Read first: `dolmen.cluster.groups`, `dolmen.cluster.breaker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
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
        if wanted == 1:
            await self._ask_in_turn(turns)
            return
        # All begin in one turn of the loop, so that their answers come in as few as can be.
        asking = [asyncio.ensure_future(self._ask_in_turn(turns)) for _ in range(wanted)]
        try:
            for task in asking:
                await task
        finally:
            for task in asking:
                if not task.cancel():
                    heard(task)

    async def _ask_in_turn(self, members: Iterator[Member]) -> None:
        """Until one has given an answer that counts."""
        breaker, counts = self._breaker, self._counts
        for member in members:
            if member.stale is not None:
                self.failures.append((member.name, stale(member)))
                continue
            began = breaker.now()
            try:
                answer = await self._ask(member)
            except InvalidName:  # to every member
                raise
            except DolmenError as error:
                self.failures.append((member.name, error))
                breaker.failed(member, error, began)
                continue
            self.answers.append((member, answer))
            if breaker.troubles:
                breaker.answered(member, wrote=counts is not None)
            if counts is None or counts(member):
                self.counted += 1
                return


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
