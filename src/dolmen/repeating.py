"""Work in the background that is done again and again until it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Repeating:
    """Awaits `work` over and over, the first time after `wait` seconds.

    `work` returns the seconds until the next time. It handles its own errors.
    """

    def __init__(self, work: Callable[[], Awaitable[float]], *, wait: float = 0) -> None:
        self._work = work
        self._closed = False
        self._task = asyncio.get_running_loop().create_task(self._run(wait))

    async def _run(self, wait: float) -> None:
        while not self._closed:
            await asyncio.sleep(wait)
            wait = await self._work()

    async def aclose(self) -> None:
        """Stop, in the midst of the work as well.

        One cancellation is not enough: up to Python 3.11 `asyncio.wait_for`, which the libraries
        of the engines use, drops one that comes just as it has its result (cpython issue 86296).
        """
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task])
