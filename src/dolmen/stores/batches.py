"""Requests that come while the server is busy with others go to it together.

Read first: `dolmen.ready`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from dolmen.errors import Corrupt, DolmenError, Full, Unavailable
from dolmen.ready import Answer, resume

Q = TypeVar("Q")
A = TypeVar("A")


class Batches(Generic[Q, A]):
    """Gives questions to `work` in batches of up to `most`, `at_once` batches at a time.

    `work` returns an answer or an error for each question, or raises one for all of them.
    With a `patience`: when questions wait and no batch was begun for that many seconds, one more is
    begun beyond `at_once`, so that a slow batch holds nobody up.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Awaitable[Sequence[A | DolmenError]]],
        *,
        at_once: int,
        most: int,
        patience: float | None = None,
    ) -> None:
        self._work, self._at_once, self._most, self._patience = work, at_once, most, patience
        self._waiting: deque[tuple[Q, Answer[A]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = self._begun = 0
        self._timer: asyncio.TimerHandle | None = None
        self._starting = self._closed = False

    def ask(self, question: Q) -> Answer[A]:
        """The answer to come. A question whose asker has gone is left out."""
        if self._closed:
            raise Unavailable("the store was closed")
        loop = asyncio.get_running_loop()
        answer: Answer[A] = Answer(loop)
        self._waiting.append((question, answer))
        if self._running < self._at_once:
            self._start(loop)
        elif self._patience is not None and self._timer is None:
            self._timer = loop.call_later(self._patience, self._overdue, self._begun)
        return answer

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._starting:
            self._starting = True  # it begins in the next turn of the loop, with all of this one
            self._running += 1
            task = loop.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _overdue(self, begun: int) -> None:
        self._timer = None
        if self._waiting:
            loop = asyncio.get_running_loop()
            if self._begun == begun:
                self._start(loop)
            self._timer = loop.call_later(self._patience or 0, self._overdue, self._begun)

    async def _run(self) -> None:
        self._starting = False
        while batch := self._next():
            self._begun += 1
            if self._waiting and self._running < self._at_once:
                self._start(asyncio.get_running_loop())
            await self._answer(batch)
            if self._running > self._at_once:
                break
        self._running -= 1

    def _next(self) -> list[tuple[Q, Answer[A]]]:
        batch: list[tuple[Q, Answer[A]]] = []
        while self._waiting and len(batch) < self._most:
            asked = self._waiting.popleft()
            if not asked[1].done():  # cancelled
                batch.append(asked)
        return batch

    async def _answer(self, batch: list[tuple[Q, Answer[A]]]) -> None:
        results: Sequence[A | Exception]
        try:
            results = await self._work([question for question, _ in batch])
        except Exception as error:  # noqa: BLE001 - everyone who asked gets it
            if isinstance(error, Full | Corrupt) and len(batch) > 1:
                for each in batch:  # one of them may be the cause, and the others right
                    await self._answer([each])
                return
            results = [error] * len(batch)
        answers = []
        for (_, answer), result in zip(batch, results, strict=True):
            answers.append(answer)
            if isinstance(result, Exception):
                answer.fail(result)
            else:
                answer.succeed(result)
        asyncio.get_running_loop().call_soon(resume, answers)

    async def aclose(self) -> None:
        """Take no more questions, and answer those there are."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._timer is not None:
            self._timer.cancel()
