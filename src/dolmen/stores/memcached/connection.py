"""A connection to one memcached server, pipelined: meta commands, and answers in lines.

The protocol is memcached's own (`doc/protocol.txt` of its source, "Meta Commands"). No
client that is asyncio's speaks it; aiomcache, which speaks the older text commands, waits in a
loop without end when the server goes away in the middle of an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

PATIENCE = 10.0
"""Seconds a server may take for its next bytes while it owes an answer."""
_MANY = (b"END", b"BUSY", b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")


class Answer:
    """What a command gave: the words of its line, and the value behind it, if any.

    Of a command that answers in lines, `lines` has those before the last one.
    """

    __slots__ = ("lines", "value", "words")

    def __init__(
        self, words: list[bytes], value: bytes | None = None, lines: list[bytes] | None = None
    ) -> None:
        self.words, self.value, self.lines = words, value, lines or []

    @property
    def status(self) -> bytes:
        """The first word: `HD`, `VA`, `EN`, `NS`, `EX`, `NF`, `END`, …"""
        return self.words[0]

    def flag(self, letter: bytes) -> bytes | None:
        """The value of a flag such as `c`."""
        for word in self.words[1:]:
            if word[:1] == letter and self.status != b"SERVER_ERROR":
                return word[1:]
        return None


class Connection(asyncio.Protocol):
    """Commands are answered in order; each gives a future. Made by `connect`.

    `gone` is called once, when it is lost or has been late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: Callable[[Connection], None]) -> None:
        self._loop, self._gone = loop, gone
        self._transport: asyncio.Transport
        self._waiting: deque[tuple[asyncio.Future[Answer], bool]] = deque()
        self._held = bytearray()
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self.lost: Exception | None = None

    def ask(self, command: bytes, *, lines: bool = False) -> asyncio.Future[Answer]:
        """Send a command, ended by CRLF; `lines` says that lines come until one that ends them.

        The future raises `ConnectionError` when the connection breaks.
        """
        answer: asyncio.Future[Answer] = self._loop.create_future()
        if self.lost is not None:
            answer.set_exception(ConnectionError(str(self.lost)))
            return answer
        self._waiting.append((answer, lines))
        self._transport.write(command)
        if self._timer is None:
            self._timer = self._loop.call_later(PATIENCE, self._late)
        return answer

    def close(self) -> None:
        """End it; what waits fails."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._lose(exc or ConnectionError("it closed the connection"))
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(ConnectionError(str(self.lost)))

    def _late(self) -> None:
        self._timer = None
        self._lose(ConnectionError(f"it did not answer within {PATIENCE:g} s"))
        self._transport.abort()

    def _lose(self, error: Exception) -> None:
        if self.lost is None:
            self.lost = error
            self._gone(self)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._held += data
        held, at = self._held, 0
        while self._waiting:
            end = held.find(b"\r\n", at) if not self._waiting[0][1] else held.find(b"\n", at)
            if end < 0:
                break
            line = bytes(held[at:end]).rstrip(b"\r")
            following = held.index(b"\n", end) + 1
            value = None
            words = line.split() or [b""]
            if words[0] == b"VA":
                size = int(words[1])
                if len(held) < following + size + 2:
                    break
                value = bytes(held[following : following + size])
                following += size + 2
            at = following
            self._take(words, line, value)
        del held[:at]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(PATIENCE, self._late) if self._waiting else None

    def _take(self, words: list[bytes], line: bytes, value: bytes | None) -> None:
        answer, lines = self._waiting[0]
        if lines and words[0] not in _MANY:
            self._lines.append(line)
            return
        self._waiting.popleft()
        if not answer.done():
            answer.set_result(Answer(words, value, self._lines))
        self._lines = []


async def connect(host: str, port: int, gone: Callable[[Connection], None]) -> Connection:
    """Open a connection; raises `OSError`. `gone` is told when it is lost."""
    loop = asyncio.get_running_loop()
    opening = loop.create_task(loop.create_connection(lambda: Connection(loop, gone), host, port))
    try:
        await asyncio.wait([opening], timeout=PATIENCE)
    except BaseException:
        opening.add_done_callback(_close_unwanted)
        opening.cancel()
        raise
    if not opening.done():
        opening.add_done_callback(_close_unwanted)
        opening.cancel()
        raise ConnectionError(f"it did not accept a connection within {PATIENCE:g} s")
    return opening.result()[1]


def _close_unwanted(opening: asyncio.Task[tuple[asyncio.Transport, Connection]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()
