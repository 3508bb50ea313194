"""One bound on the bytes that a process holds of bodies, in either direction.

`take` grants requests in order. A holder must not call it again, which could deadlock; it
uses `lend`, which never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

DEFAULT = 192 << 20


class Budget:
    """So many bytes may be held at once, and lent to who can do without at any time."""

    def __init__(self, size: int = DEFAULT) -> None:
        self.size = size
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._loans: dict[object, tuple[int, Callable[[], object]]] = {}

    def is_spent(self, size: int) -> bool:
        """Whether whoever asks for so many bytes now has to wait."""
        return bool(self._waiting) or size > self.free + sum(
            lent for lent, _ in self._loans.values()
        )

    async def take(self, size: int) -> None:
        """Take bytes, waiting for them if need be. `size` is at most the whole budget."""
        if not self._waiting and size <= self.free:
            self.free -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)  # it came in the same moment
            else:
                if (size, turn) in self._waiting:
                    self._waiting.remove((size, turn))
                self._serve()
            raise

    def give(self, size: int) -> None:
        """Give bytes back."""
        self.free += size
        if self._waiting:
            self._serve()

    def lend(self, key: object, size: int, recall: Callable[[], object]) -> bool:
        """Take bytes for what `recall` drops at once as soon as somebody waits for them.

        Returns whether there were any.
        """
        if self._waiting or size > self.free:
            return False
        self.free -= size
        self._loans[key] = size, recall
        return True

    def settle(self, key: object) -> None:
        """Give a loan back, unless it was recalled."""
        size, _ = self._loans.pop(key, (0, None))
        self.give(size)

    def _serve(self) -> None:
        """Let those who wait have what is free, and what was lent."""
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                while wanted > self.free and self._loans:
                    size, recall = self._loans.pop(next(iter(self._loans)))
                    self.free += size
                    recall()
                if wanted > self.free:
                    return
                self.free -= wanted
                turn.set_result(None)
            self._waiting.popleft()  # one that was cancelled has not run since
