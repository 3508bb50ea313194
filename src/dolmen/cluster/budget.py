"""One bound on the bytes a process holds for all transfers together."""

from __future__ import annotations

import asyncio
from collections import deque

DEFAULT = 160 << 20


class Budget:
    """So many bytes may be held at once; who asks for more waits, first come first served."""

    def __init__(self, size: int = DEFAULT) -> None:
        self.size = size
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, size: int) -> bool:
        """Take bytes if they are free and nobody waits for any."""
        if self._waiting or size > self.free:
            return False
        self.free -= size
        return True

    async def take(self, size: int) -> None:
        """Take bytes, waiting for them if need be. `size` is at most the whole budget."""
        if self.try_take(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)  # it came in the same moment
            else:
                if (size, turn) in self._waiting:
                    self._waiting.remove((size, turn))
                self.give(0)
            raise

    def give(self, size: int) -> None:
        """Give bytes back."""
        self.free += size
        while self._waiting and self._waiting[0][0] <= self.free:
            wanted, turn = self._waiting.popleft()
            if turn.cancelled():
                continue  # whoever waited was cancelled, and has not run since
            self.free -= wanted
            turn.set_result(None)
