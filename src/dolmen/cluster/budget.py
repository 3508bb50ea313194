"""One bound on the bytes a process holds for all transfers together."""

from __future__ import annotations

import asyncio
from collections import deque

DEFAULT = 160 << 20


class Budget:
    """So many bytes may be held at once; who asks for more waits, first come first served.

    What is held for as long as a client pleases takes half of it at most (`try_keep`,
    `scarce`): the other half goes round among those who give it back by themselves, so
    nobody waits for a slow client.
    """

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

    def try_keep(self, size: int) -> bool:
        """The same for bytes that a slow client may hold for long."""
        return self.free - size >= self.size // 2 and self.try_take(size)

    @property
    def scarce(self) -> bool:
        """Whether bytes that were taken must not be held for as long as a client pleases."""
        return bool(self._waiting) or self.free < self.size // 2

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
