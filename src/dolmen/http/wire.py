"""One TCP connection, either side: reading and writing no faster than the other end takes it."""

from __future__ import annotations

import asyncio
from typing import cast

from dolmen.http.chunked import LAST_CHUNK
from dolmen.http.inflow import Inflow
from dolmen.http.messages import Buffer, Stream


class Wire(asyncio.Protocol):
    """The flow control that the server's and the client's protocol share.

    `inflow` is the body that is arriving, if any; `arrived` counts the bytes
    of bodies, for the least rate a sender must keep.
    """

    __slots__ = (
        "_direct", "_drained", "_paused", "_write_paused",
        "arrived", "inflow", "loop", "lost", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.inflow: Inflow | None = None
        self.arrived = 0
        self.lost = False
        self._paused = False
        self._direct: DirectReader | None = None
        self._write_paused = False
        self._drained: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by the loop."""
        self.lost = True
        self._wake_writer()

    def send_continue(self) -> None:
        """Called when the body's reader first wants it; servers answer Expect here."""

    def abandon(self, inflow: Inflow) -> None:
        """Nobody will read the rest of this body."""

    def body_ended(self) -> None:
        """Called when the arriving body is complete."""

    # Reading.

    def pause(self) -> None:
        """Stop reading from the socket."""
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read from the socket again, through the parser."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def want(self) -> None:
        """Read because the body's reader has nothing left."""
        self.send_continue()
        self.resume()

    def fill_direct(self, inflow: Inflow, view: memoryview) -> None:
        """Let the socket write into `view` until it is full, past `data_received`."""
        self.send_continue()
        if self.transport.is_closing():
            return
        self.pause()
        self._direct = DirectReader(self, inflow, view)
        self.transport.set_protocol(self._direct)
        self.resume()

    def stop_direct(self) -> None:
        """Take the view away from the socket; reading stays paused until someone wants more."""
        if self._direct is None:
            return
        self._direct = None
        if not self.transport.is_closing():
            self.pause()
            self.transport.set_protocol(self)
        if self.inflow is not None and self.inflow.ended:
            self.body_ended()

    # Writing.

    def pause_writing(self) -> None:
        """Called by the loop: the socket takes no more for now."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Called by the loop: the socket takes more again."""
        self._write_paused = False
        self._wake_writer()

    def _wake_writer(self) -> None:
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def drain(self) -> None:
        """Wait until the socket takes more, or there is no sense in sending."""
        while self._write_paused and not self.stop_sending():
            self._drained = self.loop.create_future()
            await self._drained

    async def send_stream(self, stream: Stream, *, chunk: bool) -> int:
        """Write a stream's bytes, each piece as a chunk if asked to; returns their number.

        Stops early when `stop_sending` says so; raises ValueError for a stream
        that gives more or less than its length.
        """
        length = stream.length
        sent = 0
        async for piece in stream:
            size = len(piece)
            if self.stop_sending():
                return sent
            if not size:
                continue
            sent += size
            if chunk:
                self.transport.writelines((b"%x\r\n" % size, piece, b"\r\n"))
            elif length is not None and sent > length:
                raise ValueError(f"a stream gave more than the {length} bytes it announced")
            else:
                self.transport.write(piece)
            if self._write_paused:
                await self.drain()
        if self.stop_sending():
            return sent
        if chunk:
            self.transport.write(LAST_CHUNK)
        elif length is not None and sent < length:
            raise ValueError(f"a stream gave {sent} of the {length} bytes it announced")
        return sent

    def stop_sending(self) -> bool:
        """Whether the other end no longer takes what is being sent."""
        return self.lost or self.transport.is_closing()

    @property
    def stalled(self) -> bool:
        """Whether a writer waits for the other end."""
        return self._write_paused


class DirectReader(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol while the socket fills a reader's buffer."""

    __slots__ = ("_at", "_inflow", "_view", "_wire")

    def __init__(self, wire: Wire, inflow: Inflow, view: memoryview) -> None:
        self._wire = wire
        self._inflow = inflow
        self._view = view
        self._at = 0

    def get_buffer(self, sizehint: int) -> Buffer:  # noqa: ARG002
        """Called by the loop: where the next bytes go."""
        return self._view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop: so many bytes came."""
        self._at += nbytes
        self._wire.arrived += nbytes
        if self._inflow.filled(nbytes):
            self._wire.pause()

    def eof_received(self) -> bool | None:
        """Called by the loop: the other side will send no more."""
        return self._wire.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._wire.connection_lost(exc)

    def pause_writing(self) -> None:
        """Called by the loop: the socket takes no more for now."""
        self._wire.pause_writing()

    def resume_writing(self) -> None:
        """Called by the loop: the socket takes more again."""
        self._wire.resume_writing()
