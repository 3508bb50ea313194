"""Small answers on their way out: those of one turn of the event loop are sent together.

Each write wakes the client that waits for it. One behind the other they cost a third
less of the kernel's time than between the steps of Python that make them (measured:
`docs/decisions/2026-11-23-hot-path.md`).
"""

from __future__ import annotations

import asyncio


class Outbox:
    """Whole answers that wait for the end of the turn.

    Whoever writes to a connection, or closes it, otherwise than by `send` calls `flush`
    first, so nothing is overtaken or lost. At most `most` wait for each other.
    """

    __slots__ = ("_loop", "_most", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int) -> None:
        self._loop = loop
        self._most = most
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []

    def send(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send soon."""
        waiting = self._waiting
        waiting.append((transport, data))
        if len(waiting) == 1:
            self._loop.call_soon(self.flush)
        elif len(waiting) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Send now."""
        waiting = self._waiting
        if waiting:
            self._waiting = []
            for transport, data in waiting:
                if not transport.is_closing():
                    transport.write(data)
