"""One connection to a Redis server: commands out, replies in, in the same order.

What is sent in one turn of the loop goes out in one write, so whatever is under way at
once shares a pipeline. hiredis, Redis's own parser in C, packs and reads the protocol
(RESP 2).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hiredis import ProtocolError, Reader, ReplyError, pack_command

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable

Word = bytes | memoryview | int


class Ask(asyncio.Future[Any]):
    """A command, and the future of its reply: bytes, an int, a list of replies or None.

    `writes` when it may change something; `lane` tells the connections to a server apart;
    `optional` when None does for a reply where it is not permitted; `refusal` is what is
    said of a server that refuses it; `hops` is how often it was sent on to another.
    """

    def __init__(
        self,
        *command: Word,
        tag: int = 0,
        writes: bool = False,
        lane: int = 0,
        optional: bool = False,
        refusal: str = "",
    ) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.command, self.tag = command, tag
        self.writes, self.lane, self.optional = writes, lane, optional
        self.refusal, self.hops = refusal, 0

    def settle(self, reply: Any) -> None:
        """Give the reply, unless nobody wants it any more."""
        if not self.done():
            self.set_result(reply)

    def fail(self, error: DolmenError) -> None:
        """Let it fail, unless it was given up."""
        if not self.done():
            self.set_exception(error)
            self.exception()  # seen: who asked for several may leave at the first that fails


class Connection(asyncio.Protocol):
    """A connection to the server called `where`, lost when it is silent for `patience` seconds.

    `refused` gets every ask that the server refused and what it said; `gone` is called once.
    """

    def __init__(
        self,
        where: str,
        *,
        patience: float,
        refused: Callable[[Ask, str], None],
        gone: Callable[[Connection], None],
    ) -> None:
        self._where, self._patience = where, patience
        self._refused, self._gone = refused, gone
        self._loop = asyncio.get_running_loop()
        self._reader = Reader()
        self._outgoing: list[Ask] = []
        self._owed: deque[Ask] = deque()
        self._why = "it closed the connection"

    def send(self, ask: Ask) -> None:
        """Send a command at the end of this turn of the loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(ask)

    def abort(self, why: str) -> None:
        """Close it now; whatever is under way fails."""
        self._why = why
        self._transport.abort()

    async def finish(self) -> None:
        """Wait for every reply, and close it."""
        while under_way := [ask for ask in (*self._owed, *self._outgoing) if not ask.done()]:
            await asyncio.wait(under_way)
        self.abort("this store was closed")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._heard = self._loop.time()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._heard = self._loop.time()
        reader, owed = self._reader, self._owed
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if not owed:
                    self.abort(f"it said {reply!s:.200}")
                    return
                ask = owed.popleft()
                if isinstance(reply, ReplyError):
                    self._refused(ask, str(reply))
                else:
                    ask.settle(reply)
        except ProtocolError as error:
            self.abort(f"it does not speak the protocol of Redis ({error})")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._timer.cancel()
        self._gone(self)
        why = str(exc or self._why)
        for ask in self._owed:
            if ask.writes:
                ask.fail(OutcomeUnknown(f"{self._where} was lost before it answered: {why}"))
            else:
                ask.fail(Unavailable(f"{self._where} can't be asked: {why}"))
        for ask in self._outgoing:
            ask.fail(Unavailable(f"{self._where} can't be asked: {why}"))
        self._outgoing.clear()

    def _flush(self) -> None:
        asks = [ask for ask in self._outgoing if not ask.done()]  # others were given up
        self._outgoing.clear()
        if asks:
            if not self._owed:
                self._heard = self._loop.time()
            self._owed += asks
            self._transport.writelines([pack_command(ask.command) for ask in asks])  # type: ignore[arg-type]

    def _watch(self) -> None:
        """Look whether it is silent for too long while it owes a reply, and when to look again."""
        silent = self._loop.time() - self._heard if self._owed else 0.0
        if silent >= self._patience:
            self.abort(f"no answer within {self._patience:g} seconds")
        self._timer = self._loop.call_later(max(self._patience - silent, 0.01), self._watch)
