"""Requests that come while the server is busy with others go to it together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from dolmen.errors import Corrupt, DolmenError, Full, Unavailable

Q = TypeVar("Q")
A = TypeVar("A")


class Batches(Generic[Q, A]):
    """Gives questions to `work` in batches of up to `most`, `at_once` batches at a time.

    `work` returns an answer or an error for each question, or raises one for all of them.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Awaitable[Sequence[A | DolmenError]]],
        *,
        at_once: int,
        most: int,
    ) -> None:
        self._work, self._at_once, self._most = work, at_once, most
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._starting = self._closed = False

    def ask(self, question: Q) -> asyncio.Future[A]:
        """The answer to come. A question whose asker is gone is worked off all the same."""
        if self._closed:
            raise Unavailable("the store was closed")
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._start()
        return answer

    def _start(self) -> None:
        if not self._starting and self._running < self._at_once:
            self._starting = True  # it begins in the next turn of the loop, with all of this one
            self._running += 1
            task = asyncio.get_running_loop().create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        self._starting = False
        while self._waiting:
            count = min(len(self._waiting), self._most)
            batch = [self._waiting.popleft() for _ in range(count)]
            if self._waiting:
                self._start()
            await self._answer(batch)
        self._running -= 1  # at once: a task is not done yet when those it answered ask again

    async def _answer(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        answers: Sequence[A | Exception]
        try:
            answers = await self._work([question for question, _ in batch])
        except Exception as error:  # noqa: BLE001 - told to everyone who asked
            if isinstance(error, Full | Corrupt) and len(batch) > 1:
                for each in batch:  # one of them may be the cause, and the others right
                    await self._answer([each])
                return
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def aclose(self) -> None:
        """Take no more questions, and answer those there are."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
