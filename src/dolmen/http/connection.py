"""One TCP connection, either role: bytes in cut into messages, bytes out as the peer takes them.

Read `head`, `body` and `chunked` first. A message is a head, then a small body that is collected
whole or a large one as a stream; what comes behind it waits (`held`) until its turn. Whoever is
slow is looked at by `check`, called by a timer for all connections.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import cast

from dolmen.http.body import NO_BODY, Body, BodyStream
from dolmen.http.chunked import LAST_CHUNK
from dolmen.http.head import Head, may_begin
from dolmen.http.messages import Buffer, Stream

_END = b"\r\n\r\n"
_SLICE = 256 * 1024
Waiting = tuple[str, float, int]
"""What a connection waits for its peer to do, the seconds it may take, and a progress count that
starts the time anew."""


class Connection(asyncio.Protocol):
    """What server and client connections share.

    `head` is that of the message that arrives or arrived last, `body` its stream if it has one.
    `arrived` counts the bytes of bodies. Of a body `largest` bytes are received at most, and
    `whole` collected; `patience` is how long the peer may take nothing of what was written.
    """

    __slots__ = (
        "_cutting", "_drained", "_filler", "_mark", "_mark_since", "_reading_paused", "_scanned",
        "arrived", "body", "collecting", "head", "held", "largest", "loop", "lost", "patience",
        "transport", "whole", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport
    head: Head

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, whole: int, largest: int, patience: float
    ) -> None:
        self.loop = loop
        self.whole = whole
        self.largest = largest
        self.patience = patience
        self.held = bytearray()
        self.body: BodyStream | None = None
        self.collecting = False  # a small body is arriving
        self.arrived = 0
        self.lost = False
        self.write_paused = False
        self._scanned = 0  # so much of what is held may begin a head
        self._cutting = False
        self._reading_paused = False
        self._filler: _Filler | None = None
        self._drained: asyncio.Future[None] | None = None
        self._mark: tuple[str, int] = ("", 0)
        self._mark_since = 0.0

    # What a role adds.

    @abstractmethod
    def ready(self) -> bool:
        """Whether the next message may be taken now; asked when bytes have come."""

    @abstractmethod
    def take_beginning(self, *, good: bool) -> bool:
        """Look at the incomplete head that is held; False when the role refused it.

        `good` says whether it may still become one. Nothing needs to be done when it may.
        """

    @abstractmethod
    def take_head(self, data: bytes) -> bool:
        """Read a whole head into `head`; False when no message follows."""

    @abstractmethod
    def take_message(self, body: Body) -> None:
        """Take a message: `head` and its body, which may still be arriving."""

    @abstractmethod
    def body_ended(self) -> None:
        """The stream that was arriving is complete."""

    @abstractmethod
    def waiting(self) -> Waiting:
        """What the connection waits for, unless the peer takes nothing of what was written."""

    @abstractmethod
    def expired(self, what: str) -> None:
        """The time for `what` is over."""

    @abstractmethod
    def abandon(self, stream: BodyStream) -> None:
        """Nobody will read the rest of this body. May be called on any thread."""

    def send_continue(self) -> None:
        """Called when a body's reader first wants it; servers answer Expect here."""

    # Reading.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
        self._wake_writer()

    def data_received(self, data: bytes) -> None:
        body = self.body
        if body is not None and not body.ended:
            self.arrived += len(data)
            data = body.feed(data)
            if body.ended:
                self.body_ended()
        elif self.collecting:
            self.arrived += len(data)
        elif not self.held and self.ready():  # mostly all of one message, and nothing else
            end = data.find(_END) + 4
            if end >= 4:
                if self.take_head(data[:end]):
                    length = 0 if self.head.chunked else self.head.length or 0
                    if length == len(data) - end and length <= self.whole and not self.head.chunked:
                        self.take_message(Body(data[end:]) if length else NO_BODY)
                        return
                    self.held += data[end:]
                    self._begin_body()
                    data = b""
                else:
                    data = data[end:]
        if data:
            self.held += data
        if self.held:
            self.cut()

    def cut(self) -> None:
        """Cut what is held into messages, as far as it goes."""
        if self._cutting:
            return
        self._cutting = True
        held = self.held
        try:
            while held and not self.transport.is_closing():
                if self.collecting:
                    length = self.head.length or 0
                    if len(held) < length:
                        return
                    self.collecting = False
                    self.take_message(Body(self._taken(length)))
                elif not self.ready() or not self._cut_head():
                    return
        finally:
            self._cutting = False

    def _cut_head(self) -> bool:
        """Take a head; False if it is not all there."""
        held = self.held
        end = held.find(_END, max(0, self._scanned - 3)) + 4
        if end < 4:
            good = may_begin(held, self._scanned)
            self._scanned = len(held)
            return self.take_beginning(good=good)
        self._scanned = 0
        if self.take_head(self._taken(end)):
            self._begin_body()
        return True

    def _begin_body(self) -> None:
        head = self.head
        length = head.length
        if not length and not head.chunked:
            self.take_message(NO_BODY)
        elif length is not None and length <= self.whole and not head.expects:
            self.collecting = True
        else:
            self.body = stream = BodyStream(self, length, self.largest)
            if self.held:
                held = self._taken(len(self.held))
                self.arrived += len(held)
                self.held += stream.feed(held)
            self.take_message(Body(None, stream))
            if stream.ended:
                self.body_ended()

    def _taken(self, count: int) -> bytes:
        taken = bytes(self.held[:count])
        del self.held[:count]
        return taken

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

    def want(self) -> None:
        """Read because the body's reader has nothing left."""
        self.send_continue()
        self.resume()

    def fill(self, stream: BodyStream, view: memoryview) -> None:
        """Let the socket write into `view` until it is full, past `data_received`."""
        self.send_continue()
        if self.transport.is_closing():
            return
        self.pause()
        self._filler = _Filler(self, stream, view)
        self.transport.set_protocol(self._filler)
        self.resume()

    def stop_filling(self) -> None:
        """Take the view away from the socket; reading stays paused until someone wants more."""
        if self._filler is None:
            return
        self._filler = None
        if not self.transport.is_closing():
            self.pause()
            self.transport.set_protocol(self)
        if self.body is not None and self.body.ended:
            self.body_ended()

    # Writing.

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._wake_writer()

    def _wake_writer(self) -> None:
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def stop_sending(self) -> bool:
        """Whether the peer no longer takes what is being sent."""
        return self.lost or self.transport.is_closing()

    async def send_stream(self, stream: Stream, *, chunked: bool) -> int:
        """Write a stream's bytes, `chunked` if its length is not known; returns their number.

        No more than one slice of them is queued beyond what the socket takes. Stops early when
        `stop_sending` says so; raises ValueError for a stream that gives more or less than
        its length.
        """
        length = stream.length
        sent = 0
        async for piece in stream:
            for part in _slices(piece):
                if self.stop_sending():
                    return sent
                size = len(part)
                sent += size
                if length is None and chunked:
                    self.transport.writelines((b"%x\r\n" % size, part, b"\r\n"))
                elif length is not None and sent > length:
                    raise ValueError(f"a stream gave more than the {length} bytes it announced")
                else:
                    self.transport.write(part)
                while self.write_paused and not self.stop_sending():
                    self._drained = self.loop.create_future()
                    await self._drained
        if self.stop_sending():
            return sent
        if length is None:
            if chunked:
                self.transport.write(LAST_CHUNK)
        elif sent < length:
            raise ValueError(f"a stream gave {sent} of the {length} bytes it announced")
        return sent

    # Deadlines.

    def check(self, now: float) -> None:
        """Hold the peer to its deadlines; called every tick of the owner's timer."""
        what, allowed, progress = self.waiting()
        if what != "linger" and (self.write_paused or self.transport.is_closing()):
            what, allowed = "write", self.patience
            progress = self.transport.get_write_buffer_size()
        if self._mark != (what, progress):
            self._mark = (what, progress)
            self._mark_since = now
        elif now - self._mark_since > allowed:
            self.expired(what)


class BytesStream:
    """A large body in memory as a `Stream`."""

    __slots__ = ("_data", "length")

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self.length = len(data)

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        yield self._data


def _slices(piece: Buffer) -> Sequence[Buffer]:
    """Views of a large piece, so that little of it is queued at a time."""
    if len(piece) <= _SLICE:
        return (piece,) if piece else ()
    view = memoryview(piece)
    return [view[at : at + _SLICE] for at in range(0, len(view), _SLICE)]


class _Filler(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol while the socket fills a reader's buffer."""

    __slots__ = ("_at", "_connection", "_stream", "_view")

    def __init__(self, connection: Connection, stream: BodyStream, view: memoryview) -> None:
        self._connection = connection
        self._stream = stream
        self._view = view
        self._at = 0

    def get_buffer(self, sizehint: int) -> Buffer:  # noqa: ARG002
        return self._view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        self._connection.arrived += nbytes
        if self._stream.filled(nbytes):
            self._connection.pause()

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
