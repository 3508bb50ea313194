"""The client's side of a connection: one request out, one response in."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.http.body import NO_BODY, Body
from dolmen.http.head import Framing
from dolmen.http.inflow import Inflow
from dolmen.http.messages import Headers
from dolmen.http.problems import HTTPError
from dolmen.http.wire import Wire

if TYPE_CHECKING:
    from dolmen.http.pool import Pool

_END = b"\r\n\r\n"
_HEAD_LIMIT = 64 * 1024
_WHOLE_UP_TO = 64 * 1024
_INTERIM_LIMIT = 16
_NO_LIMIT = 1 << 62


class Stale(Exception):  # noqa: N818 - says what it is
    """A connection that had been idle was closed before it answered anything."""


class ClientResponse:
    """A response: `status`, `headers` and `body`.

    A body that has not arrived whole is read from `body`, or given up with
    `close()`, also by leaving `async with`; giving up closes the connection.
    """

    __slots__ = ("_call", "body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: Body, call: Call | None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self._call = call

    def close(self) -> None:
        """Read no more. Nothing happens when the body has been read to its end."""
        if self._call is not None:
            self._call.give_up()
            self._call = None

    async def __aenter__(self) -> ClientResponse:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ClientResponse {self.status}>"


class Call:
    """One request under way, so that a late `close()` can't reach the connection's next one."""

    __slots__ = ("answer", "connection", "continued", "got_bytes", "reads", "sent")

    def __init__(
        self,
        connection: ClientConnection,
        answer: asyncio.Future[ClientResponse],
        *,
        reads: bool,
    ) -> None:
        self.connection = connection
        self.reads = reads
        self.answer: asyncio.Future[ClientResponse] | None = answer
        self.continued: asyncio.Future[None] | None = None
        self.sent = False
        self.got_bytes = False

    def settle(self, outcome: ClientResponse | Exception) -> None:
        """Give the waiting caller its response, or the error instead."""
        answer = self.answer
        if answer is not None and not answer.done():
            if isinstance(outcome, ClientResponse):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)
        self.let_continue()

    @property
    def answered(self) -> bool:
        """Whether there is an outcome, or nobody waits for one any more."""
        return self.answer is None or self.answer.done()

    def let_continue(self) -> None:
        """Wake a caller who waits to be asked for the body."""
        if self.continued is not None and not self.continued.done():
            self.continued.set_result(None)

    def give_up(self) -> None:
        """Close the connection, if this is still what it is on."""
        if self.connection.call is self:
            self.connection.transport.abort()


class ClientConnection(Wire):
    """Sends requests one after the other and frames what comes back.

    Whatever is not a well-formed HTTP/1.1 response whose end can be told from
    a cut closes the connection with an error.
    """

    __slots__ = (
        "_fed", "_head_only", "_held", "_interim", "_last_arrived", "_parser", "_pending", "_poll",
        "_stall", "call", "pool", "since", "used",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.loop)
        self.pool = pool
        self.call: Call | None = None
        self.used = False
        self.since = 0.0
        self._parser = HttpResponseParser(None)
        self._held = bytearray()
        self._pending: tuple[int, Framing] | None = None
        self._poll: select.poll | None = None
        self._head_only = False
        self._interim = 0
        self._fed = 0
        self._stall = -1
        self._last_arrived = 0

    def begin(self, *, head_only: bool, reads: bool) -> tuple[Call, asyncio.Future[ClientResponse]]:
        """Take on a request; the caller then writes it to `transport` and awaits the future."""
        self._head_only = head_only
        self._interim = 0
        self._parser = HttpResponseParser(None)
        self.since = self.pool.clock()
        answer: asyncio.Future[ClientResponse] = self.loop.create_future()
        self.call = call = Call(self, answer, reads=reads)
        return call, answer

    def has_input(self) -> bool:
        """Whether there is something to read that nobody asked for: an end, or a late answer."""
        poll = self._poll
        if poll is None:
            sock = self.transport.get_extra_info("socket")
            poll = self._poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
        return bool(poll.poll(0))

    def stop_sending(self) -> bool:
        """Whether the request is no longer wanted: it has been answered, or can't be."""
        call = self.call
        return self.lost or call is None or call.answered or self.transport.is_closing()

    def failure(self, what: str) -> DolmenError:
        """The error for a request that got no (whole) answer because of `what`."""
        where = self.pool.name
        if self.call is None or self.call.reads:
            return Unavailable(f"{where} {what}")
        return OutcomeUnknown(f"{where} {what}; whether it did what was asked is not known")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        super().connection_lost(exc)
        self._break("closed the connection before its answer was complete")
        self.pool.forget(self)

    def _break(self, what: str) -> None:
        """End the request under way with an error, and the connection."""
        call = self.call
        if call is not None:
            error: Exception = self.failure(what)
            if self.used and call.reads and not call.got_bytes:
                error.__cause__ = Stale()
            call.settle(error)
            if self.inflow is not None:
                self.inflow.fail(error)
            self.call = None
        if not self.transport.is_closing():
            self.transport.abort()

    def eof_received(self) -> bool | None:
        """Called by the loop: the other side will send no more."""
        return None

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        call = self.call
        if call is None:
            self.transport.abort()  # nothing was asked
            return
        call.got_bytes = True
        inflow = self.inflow
        if inflow is not None:
            self.arrived += len(data)
            rest = inflow.feed(data)
            if isinstance(inflow.error, HTTPError):
                what = f"sent a body that can't be read: {inflow.error.detail}"
                inflow.error = self.failure(what)
                self._break(what)
            elif inflow.ended:
                self._held += rest
                self.body_ended()
            return
        if self._pending is not None:
            self.arrived += len(data)
        elif not self._held:
            end = data.find(_END) + 4
            if end >= 4:
                head = data[:end]
                if self._parse(head):
                    self._take_head(head, data[end:])
                return
        self._held += data
        if self._pending is not None:
            self._finish_pending()
            return
        held = self._held
        end = held.find(_END, max(0, self._fed - 3)) + 4
        stop = end if end >= 4 else len(held)
        if not self._parse(bytes(held[self._fed : stop])):
            return
        self._fed = stop
        if end >= 4:
            self._fed = 0
            head, rest = bytes(held[:end]), bytes(held[end:])
            held.clear()
            self._take_head(head, rest)
        elif len(held) > _HEAD_LIMIT:
            self._break("sent headers without end")

    def _parse(self, piece: bytes) -> bool:
        """Let llhttp check a piece of a head."""
        try:
            self._parser.feed_data(piece)
        except HttpParserUpgrade:
            self._break("wants to switch protocols")
            return False
        except HttpParserError as error:
            self._break(f"sent a malformed answer: {error}")
            return False
        return True

    def _take_head(self, head: bytes, rest: bytes) -> None:
        at = head.find(b"\r\n")
        line = head[:at]
        http11 = line.startswith(b"HTTP/1.1 ")
        if not http11 and not line.startswith(b"HTTP/1.0 "):
            self._break("does not answer in HTTP/1.1")
            return
        status = int(line[9:12])
        if status < 200:
            self._take_interim(status, rest)
            return
        try:
            framing = Framing(head[at:], http11=http11)
        except (HTTPError, ValueError) as error:
            self._break(f"sent a malformed answer: {error}")
            return
        length = framing.length
        if self._head_only or status in (204, 304):
            length = 0
        elif framing.chunked:
            length = None
        elif length is None:
            self._break("sent an answer without a length, whose end can't be told from a cut")
            return
        if length is not None and length <= _WHOLE_UP_TO:
            if len(rest) == length:
                self._deliver(status, framing, Body(rest) if length else NO_BODY)
                return
            self._pending = (status, framing)
            self._held += rest
            self._finish_pending(length)
            return
        call = self.call
        self.inflow = inflow = Inflow(self, length, _NO_LIMIT)
        self._pending = (status, framing)
        body = Body(None, inflow)
        if call is not None:
            call.settle(ClientResponse(status, framing.headers, body, call))
            self._wake_writer()
        del body  # only the caller holds it, so that forgetting it is noticed
        if rest:
            self.data_received(rest)

    def _take_interim(self, status: int, rest: bytes) -> None:
        self._interim += 1
        if status == 101 or self._interim > _INTERIM_LIMIT:
            self._break("sent interim answers that were not asked for")
            return
        self._parser = HttpResponseParser(None)
        if status == 100 and self.call is not None:
            self.call.let_continue()
        if rest:
            self.data_received(rest)

    def _finish_pending(self, length: int | None = None) -> None:
        pending = self._pending
        if pending is None:
            return
        status, framing = pending
        if length is None:
            length = framing.length or 0
        if len(self._held) >= length:
            body = bytes(self._held[:length])
            del self._held[:length]
            self._deliver(status, framing, Body(body) if length else NO_BODY)

    def _deliver(self, status: int, framing: Framing, body: Body) -> None:
        """Give a response that has arrived whole, and the connection back."""
        call = self.call
        self._done(framing)
        if call is not None:
            call.settle(ClientResponse(status, framing.headers, body, None))

    def body_ended(self) -> None:
        """The response is complete."""
        if self._pending is not None:
            self._done(self._pending[1])

    def _done(self, framing: Framing) -> None:
        """The response is complete: back to the pool, unless that would not be clean."""
        call, self.call = self.call, None
        self.inflow = None
        self._pending = None
        clean = call is not None and call.sent and not self._held and not self._write_paused
        self._wake_writer()
        if clean and framing.keep_alive and not self.transport.is_closing():
            self.resume()
            self.used = True
            self.since = self.pool.clock()
            self.pool.release(self)
        else:
            self.transport.abort()

    def abandon(self, inflow: Inflow) -> None:
        """Nobody will read the rest of the response."""
        # This may be a finalizer, on any thread.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._abandoned, inflow)

    def _abandoned(self, inflow: Inflow) -> None:
        if self.inflow is inflow:
            self.transport.abort()

    def resume_writing(self) -> None:
        """Called by the loop: the socket takes more again."""
        super().resume_writing()
        self.since = self.pool.clock()

    def check(self, now: float) -> None:
        """Hold the far side to its deadlines; called a few times a second."""
        timeouts = self.pool.timeouts
        call = self.call
        if call is None:
            if now - self.since > timeouts.keep_alive:
                self.transport.abort()
        elif self._write_paused:
            left = self.transport.get_write_buffer_size()
            if left != self._stall:
                self._stall = left
                self.since = now
            elif now - self.since > timeouts.idle:
                self._break(f"took nothing of the request for {timeouts.idle:g} s")
        elif not call.answered and self._pending is None:
            if not call.sent:
                self.since = now  # the caller's stream is what is slow
            elif now - self.since > timeouts.first_byte:
                self._break(f"did not answer within {timeouts.first_byte:g} s")
        elif self.inflow is None or self.inflow.waiter is not None:
            if self.arrived != self._last_arrived:
                self._last_arrived = self.arrived
                self.since = now
            elif now - self.since > timeouts.idle:
                self._break(f"sent nothing of its answer for {timeouts.idle:g} s")
        else:
            self.since = now
