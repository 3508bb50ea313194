"""Small writes on their way out: those of one turn of the event loop are made together.

Each write wakes the peer that waits for it. One behind the other they cost a third less of the
kernel's time than between the steps of Python that make them (measured:
`docs/decisions/2026-11-23-hot-path.md`).
"""

from __future__ import annotations

import asyncio


class WriteCoalescer:
    """Whole messages that wait for the end of the turn, at most `most` of them.

    Whoever writes to a connection, or closes it, otherwise than by `send` calls `flush`
    first, so nothing is overtaken or lost.
    """

    __slots__ = ("_dropped", "_loop", "_most", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int) -> None:
        self._loop = loop
        self._most = most
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._dropped: list[asyncio.Transport] = []

    def send(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write at the end of this turn."""
        waiting = self._waiting
        waiting.append((transport, data))
        if len(waiting) == 1:
            self._loop.call_soon(self.flush)
        elif len(waiting) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Write now."""
        waiting = self._waiting
        if waiting:
            self._waiting = []
            for transport, data in waiting:
                if transport.is_closing():
                    self._dropped.append(transport)
                else:
                    transport.write(data)

    def holds(self, transport: asyncio.Transport) -> bool:
        """Whether something for this connection still waits."""
        return any(entry[0] is transport for entry in self._waiting)

    def withdraw(self, transport: asyncio.Transport) -> bool:
        """Forget a connection that is lost; whether something for it was never written."""
        dropped = transport in self._dropped
        if dropped:
            self._dropped.remove(transport)
        count = len(self._waiting)
        self._waiting[:] = [entry for entry in self._waiting if entry[0] is not transport]
        return dropped or len(self._waiting) < count
