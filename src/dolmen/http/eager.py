"""Coroutines run without a task: stepped at once, and again whenever what they wait for is ready.

A task costs 4 µs, of which most handlers that wait for a disk or a peer have no use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class EagerRun:
    """Runs a coroutine from the first `step` on; `ended` is called with its error, or None.

    It sees no `current_task()`. One that needs a task (for `asyncio.timeout` or a
    `TaskGroup`) awaits `asyncio.sleep(0)`, after which it runs in one.
    """

    __slots__ = ("_cancelled", "_coro", "_ended", "_waiting")

    def __init__(
        self, coro: Coroutine[Any, Any, None], ended: Callable[[BaseException | None], None]
    ) -> None:
        self._coro = coro
        self._ended = ended
        self._cancelled = False
        self._waiting: Any = None

    def cancel(self) -> None:
        """Raise `CancelledError` in the coroutine, at what it waits for."""
        if self._waiting is None or not self._waiting.cancel():
            self._cancelled = True

    def step(self, _: object = None) -> None:
        """Run on until the coroutine waits for something, or ends."""
        try:
            if self._cancelled:
                self._cancelled = False
                waiting = self._coro.throw(asyncio.CancelledError())
            else:
                waiting = self._coro.send(None)
        except StopIteration:
            self._ended(None)
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - handed on
            self._ended(error)
            return
        if getattr(waiting, "_asyncio_future_blocking", False):  # a future, as tasks see it
            waiting._asyncio_future_blocking = False  # noqa: SLF001
            self._waiting = waiting
            waiting.add_done_callback(self.step)
        else:  # a bare yield, as in `asyncio.sleep(0)`
            self._waiting = asyncio.get_running_loop().create_task(self._coro)
            self._waiting.add_done_callback(self._task_done)
        if self._cancelled and self._waiting.cancel():
            self._cancelled = False

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._ended(asyncio.CancelledError() if task.cancelled() else task.exception())
