"""A connection whose work is a coroutine, run without a task.

It is stepped at once, and again whenever what it waits for is ready. A task costs 4 µs, of which
most handlers that wait for a disk or a peer have no use.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from typing import Any

from dolmen.http.connection import Connection


class EagerConnection(Connection):
    """Runs one coroutine after the other; `running` is the one that has not ended.

    A coroutine sees no `current_task()`. One that needs a task (for `asyncio.timeout` or a
    `TaskGroup`) awaits `asyncio.sleep(0)`, after which it runs in one.
    """

    __slots__ = ("_cancelled", "_waits_for", "running")

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        super().__init__(loop, patience)
        self.running: Coroutine[Any, Any, None] | None = None
        self._waits_for: Any = None
        self._cancelled = False

    @abstractmethod
    def ended(self, error: BaseException | None) -> None:
        """Called at the coroutine's end, with what it raised."""

    def cancel(self) -> None:
        """Raise `CancelledError` in the coroutine, at what it waits for."""
        if self._waits_for is None or not self._waits_for.cancel():
            self._cancelled = True

    def step(self, _: object = None) -> None:
        """Begin what is `running`, or go on with it, until it waits for something or ends."""
        coro, self._waits_for = self.running, None  # with what the wait has given
        assert coro is not None
        try:
            if self._cancelled:
                self._cancelled = False
                waiting = coro.throw(asyncio.CancelledError())
            else:
                waiting = coro.send(None)
        except StopIteration:
            self.running = None
            self.ended(None)
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - handed on
            self.running = None
            self.ended(error)
            return
        if getattr(waiting, "_asyncio_future_blocking", False):  # a future, as tasks see it
            waiting._asyncio_future_blocking = False  # noqa: SLF001
            waiting.add_done_callback(self.step)
        else:  # a bare yield, as in `asyncio.sleep(0)`
            waiting = self.loop.create_task(coro)
            waiting.add_done_callback(self._task_done)
        self._waits_for = waiting
        if self._cancelled and waiting.cancel():
            self._cancelled = False

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self.running = self._waits_for = None
        self.ended(asyncio.CancelledError() if task.cancelled() else task.exception())
