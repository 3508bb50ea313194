"""One TCP connection, either role: bytes in as they are asked for, out as the peer takes them.

What has come is held until a coroutine takes it; one that needs `more` waits. A reader that takes
nothing pauses the peer, a peer that takes nothing pauses the writer. Whoever is slow is looked at
by `check`, called by a timer for all connections.

Read first: `dolmen.http.messages`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

from dolmen.http.messages import Buffer, Stream

HIGH_WATER = 64 * 1024
_SLICE = 256 * 1024
Waiting = tuple[str, float, int]
"""What a connection waits for its peer to do, the seconds it may take, and a progress count that
starts the time anew."""


class Connection(asyncio.Protocol):
    """What server and client connections share.

    Of `held`, what lies behind `at` has come and was not taken yet; it is b"" when all was.
    `arrived` counts what came. `waits` is what a reader waits for, as a role's `waiting` knows it.
    `error` is what reading raises once there is nothing more to come. `patience` is how long the
    peer may take nothing of what was written, `unsent` whether that still waits in a coalescer.
    """

    __slots__ = (
        "_drained", "_filler", "_mark", "_mark_since", "_reading_paused", "_waiter",
        "arrived", "at", "error", "held", "loop", "lost", "patience", "transport", "unsent",
        "waits", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self.loop = loop
        self.patience = patience
        self.held = b""
        self.at = 0
        self.arrived = 0
        self.waits = ""
        self.error: Exception | None = None
        self.unsent = self.lost = self.write_paused = False
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._filler: _Filler | None = None
        self._drained: asyncio.Future[None] | None = None
        self._mark: tuple[str, int] = ("", 0)
        self._mark_since = 0.0

    # What a role adds.

    @abstractmethod
    def waiting(self) -> Waiting:
        """What the connection waits for, unless the peer takes nothing of what was written."""

    @abstractmethod
    def expired(self, what: str) -> None:
        """The time for `what` is over."""

    def send_continue(self) -> None:
        """Ask for the body that the peer announced with Expect."""

    def unreadable(self, error: Exception) -> Exception:
        """The error for a body that can't be read on because of this one."""
        return error

    # Reading.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
        self._wake_writer()

    def data_received(self, data: bytes) -> None:
        self.arrived += len(data)
        self.held = self.held[self.at :] + data if self.held else data
        self.at = 0
        self.wake()
        if len(self.held) > HIGH_WATER:
            self.pause()

    def unread(self) -> int:
        """How many bytes have come that nobody took."""
        return len(self.held) - self.at

    def take(self, most: int) -> bytes:
        """Up to so many of the bytes that have come."""
        held, at = self.held, self.at
        end = at + most
        if end < len(held):
            self.at = end
            return held[at:end]
        self.held, self.at = b"", 0
        return held[at:]

    async def more(self, what: str) -> None:
        """Wait until more has come, called `what` while it takes; raises what ends the wait."""
        if self.error is not None:
            raise again(self.error)
        if self._waiter is not None:
            raise RuntimeError("a body has one reader at a time")
        self._waiter = waiter = self.loop.create_future()
        self.waits = what
        self.resume()
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None
                self.waits = ""
            del waiter  # its error would hold this frame, and this frame it

    async def fill(self, view: memoryview, count: Callable[[int], None]) -> None:
        """Let the socket write into `view` until it is full; `count` is told of what it wrote."""
        self.pause()
        self._filler = filler = _Filler(self, view, count)
        self.transport.set_protocol(filler)
        try:
            await self.more("body")
        finally:
            if self._filler is filler:
                self._stop_filling()

    def wake(self) -> None:
        """Let the reader look at what there is."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def interrupt(self, error: Exception) -> None:
        """Who waits for more gets an error instead, and the connection is free for others."""
        self._stop_filling()
        waiter, self._waiter, self.waits = self._waiter, None, ""
        if waiter is not None and not waiter.done():
            waiter.set_exception(again(error))

    def _stop_filling(self) -> None:
        """Take the view away from the socket; reading stays paused until someone wants more."""
        if self._filler is not None:
            self._filler.view = memoryview(b"")  # the transport may keep the filler
            self._filler = None
            if not self.transport.is_closing():
                self.pause()
                self.transport.set_protocol(self)

    def pause(self) -> None:
        """Stop reading from the socket."""
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read from the socket again."""
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    # Writing.

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def stop_sending(self) -> bool:
        """Whether the peer no longer takes what is being sent."""
        return self.lost or self.transport.is_closing()

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written."""
        while self.write_paused and not self.stop_sending():
            self._drained = self.loop.create_future()
            await self._drained

    async def send_stream(self, stream: Stream, *, chunked: bool) -> int:
        """Write a stream's bytes, `chunked` if its length is not known; returns their number.

        No more than one slice of them is queued beyond what the socket takes. Stops early when
        `stop_sending` says so; raises ValueError for a stream that gives more or less than
        its length.
        """
        length = stream.length
        chunked = chunked and length is None
        sent = 0
        async for piece in stream:
            for part in _slices(piece):
                if self.stop_sending():
                    return sent
                sent += len(part)
                if length is not None and sent > length:
                    raise ValueError(f"a stream gave more than the {length} bytes it announced")
                if chunked:
                    self.transport.writelines((b"%x\r\n" % len(part), part, b"\r\n"))
                else:
                    self.transport.write(part)
                await self.drain()
        if self.stop_sending():
            return sent
        if chunked:
            self.transport.write(b"0\r\n\r\n")
        elif length is not None and sent < length:
            raise ValueError(f"a stream gave {sent} of the {length} bytes it announced")
        return sent

    # Deadlines.

    def check(self, now: float) -> None:
        """Hold the peer to its deadlines; called every tick of the owner's timer."""
        what, allowed, progress = self.waiting()
        left = self.transport.get_write_buffer_size()
        if self.write_paused or self.transport.is_closing() or (left and what == "linger"):
            what, allowed, progress = "write", self.patience, left
        if self._mark != (what, progress):
            self._mark = (what, progress)
            self._mark_since = now
        elif now - self._mark_since > allowed:
            self.expired(what)


def again(error: Exception) -> Exception:
    """The same error without its traceback.

    Errors that are kept are raised so, or they would keep the frames they went through, and
    the buffers in them, until the garbage collector finds the cycle.
    """
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def _slices(piece: Buffer) -> Sequence[Buffer]:
    """Views of a large piece, so that little of it is queued at a time."""
    if len(piece) <= _SLICE:
        return (piece,) if piece else ()
    view = memoryview(piece)
    return [view[at : at + _SLICE] for at in range(0, len(view), _SLICE)]


class _Filler(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol while the socket fills a reader's buffer."""

    __slots__ = ("_at", "_connection", "_count", "view")

    def __init__(
        self, connection: Connection, view: memoryview, count: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self.view = view
        self._count = count
        self._at = 0

    def get_buffer(self, sizehint: int) -> Buffer:  # noqa: ARG002
        return self.view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        self._connection.arrived += nbytes
        self._count(nbytes)
        if self._at == len(self.view):
            self._connection.pause()
            self._connection.wake()

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class WriteCoalescer:
    """Small messages on their way out: those of one turn of the event loop are written together.

    Each write wakes the peer that waits for it. One behind the other they cost a third less of the
    kernel's time than between the steps of Python that make them (measured:
    `docs/decisions/2026-11-23-hot-path.md`). At most `most` wait. Whoever writes to a connection,
    or closes it, otherwise than by `send` calls `flush` first, so nothing is overtaken or lost.
    """

    __slots__ = ("_loop", "_most", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int) -> None:
        self._loop = loop
        self._most = most
        self._waiting: list[tuple[Connection, bytes]] = []

    def send(self, connection: Connection, data: bytes) -> None:
        """Write at the end of this turn; until then the connection has it `unsent`."""
        connection.unsent = True
        waiting = self._waiting
        waiting.append((connection, data))
        if len(waiting) == 1:
            self._loop.call_soon(self.flush)
        elif len(waiting) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Write now."""
        waiting = self._waiting
        if waiting:
            self._waiting = []
            for connection, data in waiting:
                transport = connection.transport
                if not transport.is_closing():
                    connection.unsent = False
                    transport.write(data)
