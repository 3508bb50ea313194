"""Asking several members at once. There is no other fan-out in a cluster.

A store's `write` returns a future or a coroutine: a future costs no task here.
Read first: `dolmen.cluster.groups`, `dolmen.cluster.breaker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from dolmen.cluster.breaker import Breaker
from dolmen.cluster.failures import Failures, stale
from dolmen.cluster.groups import Member
from dolmen.errors import BadContent, DolmenError, InvalidName

T = TypeVar("T")
_EVERYWHERE = (BadContent, InvalidName)
"""Errors that every member would answer with."""


class FanOut(Generic[T]):
    """Members asked at once; each that fails, or does not count, is replaced by the next.

    `answers` and `failures` come in the order in which they arrived, and add up over
    several runs.
    """

    __slots__ = (
        "_ask",
        "_breaker",
        "_counts",
        "_done",
        "_members",
        "_pending",
        "_wrote",
        "answers",
        "failures",
    )

    def __init__(
        self,
        ask: Callable[[Member], Awaitable[T]],
        breaker: Breaker,
        counts: Callable[[Member], bool] | None = None,
        *,
        wrote: bool = False,
    ) -> None:
        """`counts` says whether the answer of a member is one of those wanted; `wrote` that
        an answer shows that the member takes writes.
        """
        self._ask, self._breaker, self._counts, self._wrote = ask, breaker, counts, wrote
        self._members: Iterator[Member] = iter(())
        self._pending: dict[asyncio.Future[T], tuple[Member, float]] = {}
        self._done: asyncio.Future[None] | None = None
        self.answers: list[tuple[Member, T]] = []
        self.failures: Failures = []

    async def run(self, members: Iterable[Member], wanted: int) -> None:
        """Ask members in turn, `wanted` at once, until that many have answered or none is left.

        Raises at once what every member would answer. When it raises or is cancelled, what
        is under way is cancelled.
        """
        self._members = iter(members)
        try:
            for _ in range(wanted):
                self._next()
            if self._pending:
                self._done = asyncio.get_running_loop().create_future()
                await self._done
        finally:
            for future in self._pending:
                future.cancel()

    def _next(self) -> None:
        for member in self._members:
            if member.stale is not None:
                self.failures.append((member.name, stale(member)))
                continue
            began = self._breaker.now()
            try:
                asked = self._ask(member)
            except DolmenError as error:
                self._failed(member, error, began)
                continue
            future = asyncio.ensure_future(asked)
            self._pending[future] = member, began
            future.add_done_callback(self._ended)
            return

    def _ended(self, future: asyncio.Future[T]) -> None:
        member, began = self._pending.pop(future)
        done = self._done
        if done is None or done.done():  # nobody waits any more
            if not future.cancelled():
                future.exception()
            return
        try:
            self._take(member, began, future)
        except BaseException as error:  # noqa: BLE001 - it is raised where `run` waits
            done.set_exception(error)
        else:
            if not self._pending:
                done.set_result(None)

    def _take(self, member: Member, began: float, future: asyncio.Future[T]) -> None:
        try:
            answer = future.result()
        except DolmenError as error:
            self._failed(member, error, began)
            self._next()
            return
        self.answers.append((member, answer))
        if self._breaker.troubles:
            self._breaker.answered(member, wrote=self._wrote)
        if self._counts is not None and not self._counts(member):
            self._next()

    def _failed(self, member: Member, error: DolmenError, began: float) -> None:
        if isinstance(error, _EVERYWHERE):
            raise error
        self.failures.append((member.name, error))
        self._breaker.failed(member, error, began)


async def each(
    members: Sequence[Member], ask: Callable[[Member], Awaitable[T]]
) -> tuple[list[tuple[Member, T]], Failures]:
    """Ask every member of the state it is in: all at once, stale ones too."""

    async def one(member: Member) -> T | DolmenError:
        try:
            return await ask(member)
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
