"""Coroutines run without a task: stepped at once, and again whenever what they wait for is ready.

A task costs 4 µs, of which most handlers that wait for a disk or a peer have no use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Ended = Callable[[Any, BaseException | None], None]
"""Called with what a coroutine returned, or the `Exception` or `CancelledError` it raised."""


class EagerRun:
    """Runs a coroutine that has been begun and waits for `waiting`; `ended` is called at its end.

    It sees no `current_task()`. One that needs a task (for `asyncio.timeout` or a
    `TaskGroup`) awaits `asyncio.sleep(0)`, after which it runs in one.
    """

    __slots__ = ("_cancelled", "_coro", "_ended", "_waiting")

    def __init__(self, coro: Coroutine[Any, Any, Any], waiting: Any, ended: Ended) -> None:
        self._coro = coro
        self._ended = ended
        self._cancelled = False
        self._wait(waiting)

    def cancel(self) -> None:
        """Raise `CancelledError` in the coroutine, at what it waits for."""
        if not self._waiting.cancel():
            self._cancelled = True

    def _step(self, _: object) -> None:
        try:
            if self._cancelled:
                self._cancelled = False
                waiting = self._coro.throw(asyncio.CancelledError())
            else:
                waiting = self._coro.send(None)
        except StopIteration as stop:
            self._ended(stop.value, None)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - handed on
            self._ended(None, error)
        else:
            self._wait(waiting)

    def _wait(self, waiting: Any) -> None:
        if getattr(waiting, "_asyncio_future_blocking", False):  # a future, as tasks see it
            waiting._asyncio_future_blocking = False  # noqa: SLF001
            self._waiting = waiting
            waiting.add_done_callback(self._step)
        else:  # a bare yield, as in `asyncio.sleep(0)`
            self._waiting = asyncio.get_running_loop().create_task(self._coro)
            self._waiting.add_done_callback(self._task_done)
        if self._cancelled and self._waiting.cancel():
            self._cancelled = False

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._ended(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._ended(None, error)
        else:
            self._ended(task.result(), None)
