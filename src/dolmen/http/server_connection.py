"""The server's side of a connection: requests in, one after the other, and their responses out.

Read `connection`, `body` and `eager` first. A plain request that comes whole, with the header lines
of the one before, is answered right where its bytes come in; all else is read and answered by a
coroutine that ends when nothing is left to do. What is not HTTP/1.1 is refused, and the connection
closed. When the client goes away the handler is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dolmen.errors import BadContent
from dolmen.http.body import NO_BODY, Arriving, Body
from dolmen.http.connection import Waiting
from dolmen.http.eager import EagerConnection
from dolmen.http.encoding import (
    HTTP2_PREFACE,
    HTTP2_REFUSAL,
    EncodedHeaders,
    connection_line,
    encode_headers,
    length_line,
    response_start,
)  # fmt: skip
from dolmen.http.head import Head, check_beginning, read_request, recognize
from dolmen.http.messages import (
    Address,
    Headers,
    HTTPError,
    Request,
    Response,
    Streamed,
    close_stream,
    problem,
)  # fmt: skip
from dolmen.http.origins import SAFE_METHODS

if TYPE_CHECKING:
    from dolmen.http.server import Server

log = logging.getLogger("dolmen.http")
_FAILED = "The server failed on this request; its log says why."
_BYTES = (bytes, memoryview, bytearray)
_JOINED = 64 * 1024  # a body no larger is joined to its head: one copy, one write
_DISCARDED = 64 * 1024  # an unread body no larger is thrown away to keep the connection
_BODILESS = (204, 304)
_RATE_WINDOW = 60.0  # seconds over which the least rate of a body is taken
_NO_BLOCK = b"?"
_REFUSED = Head(Headers({b"connection": b"close"}), http11=True)


class ServerConnection(EagerConnection):
    """Takes the requests of one connection; `loopback` is whether its listener is on loopback."""

    __slots__ = (
        "_block", "_forgiven", "_handler", "_loopback", "_started", "_target_max", "_window",
        "answered", "body", "head", "peer", "server",
    )  # fmt: skip

    def __init__(self, server: Server, *, loopback: bool) -> None:
        super().__init__(server.loop, server.limits.body_idle)
        self.server = server
        self.peer: Address = None
        self.head = _REFUSED  # of the request that is answered, or was
        self.body: Arriving | None = None  # its body, unless that came whole
        self.answered = 0
        self._handler = server.handler
        self._loopback = loopback
        self._block = _NO_BLOCK  # the lines of `head`, where a request with them needs no look
        self._target_max = server.limits.request_line - len("DELETE  HTTP/1.1")
        self._forgiven = -1  # the number of the request before which an empty line was skipped
        self._started = 0.0
        self._window: tuple[float, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        connections = self.server.connections
        connections.add(self)
        limit = self.server.limits.connections
        if self.server.draining or len(connections) > limit:
            what = "is shutting down" if self.server.draining else "has too many connections"
            later = [(b"Retry-After", b"1")]
            self._begin(None, problem(503, f"The server {what}.", headers=later))
            if len(connections) > limit + limit // 8:  # each costs a descriptor while it lingers
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.error = BadContent("The client went away before the end of its body.")
        if self.running is None:
            self.server.forget(self)
        else:
            self.cancel()
        self.interrupt(self.error)

    def eof_received(self) -> bool | None:
        self.server.coalescer.flush()
        return None  # the transport sends what is written and closes

    def data_received(self, data: bytes) -> None:
        if self.running is None and not self.write_paused:
            known = recognize(data, self._block)
            if known is not None:
                method, target, end = known
                length = len(data) - end
                if length == (self.head.length or 0) and len(target) <= self._target_max:
                    body = Body(data[end:]) if length else NO_BODY
                    self._answer(Request(method, target, self.head.headers, body, self.peer))
                    return
        super().data_received(data)
        if self.running is None:
            self._begin(None)

    def _answer(self, request: Request) -> None:
        """Answer a request that came whole: here where its handler does, else in a coroutine."""
        self._started = perf_counter()
        try:
            answer: Any = self._handler(request)
        except Exception as error:  # noqa: BLE001 - becomes a response
            answer = _failed(request, error)
        except asyncio.CancelledError:
            self.transport.abort()
            return
        body: Any = answer.body if type(answer) is Response else None
        if type(body) in _BYTES and len(body) <= _JOINED and not self.server.draining:
            self._respond(request, answer, body)
        else:
            self._begin(request, answer)

    def _begin(self, request: Request | None, answer: Any = None) -> None:
        self.running = self._serve(request, answer)
        self.step()

    def ended(self, error: BaseException | None) -> None:
        """Nothing is left to do for now, or for ever."""
        if error is not None:
            if isinstance(error, Exception) and not isinstance(error, HTTPError):
                log.error("a connection failed", exc_info=error)
            self.transport.abort()
        if self.lost:
            self.body = None
            self.server.forget(self)
        elif self.held and not self.transport.is_closing():  # it came while a task ended
            self._begin(None)

    async def _serve(self, request: Request | None, answer: Any) -> None:
        """Answer a request with what its handler gave, then take those that have come meanwhile."""
        while True:
            try:
                if request is None and answer is None:
                    await self.drain()
                    request = None if self.transport.is_closing() else await self._read_request()
                    if request is None:
                        return
                    answer = self._handler(request)
                response = answer if isinstance(answer, Response) else await answer
                if not isinstance(response, Response):
                    response = _failed(request, TypeError(f"a handler returned {response!r}"))
            except Exception as error:  # noqa: BLE001 - becomes a response
                response = _failed(request, error)
            if request is None:
                self.head, self._block = _REFUSED, _NO_BLOCK
                self._started = perf_counter()
            body = response.body
            if isinstance(body, _BYTES) and len(body) <= _JOINED:
                keep = self._respond(request, response, body)
            else:
                keep = await self._stream(request, response)
            rest = self.body
            if rest is not None and not rest.ended:
                # Who still reads is told; the connection goes on without them.
                rest.error = rest.error or HTTPError(400, "The request has already been answered.")
                self.interrupt(rest.error)
            if not keep or self.server.draining:
                if self.held or request is None or (rest is not None and not rest.ended):
                    await self._linger()
                self.server.coalescer.flush()
                self.transport.close()
                return
            while rest is not None and rest.left:
                rest.left -= len(self.take(rest.left))
                if rest.left:
                    await self.more("body")
            self.body = request = answer = None
            if not self.held:
                if self._reading_paused:
                    self.resume()
                return

    # Reading.

    async def _read_request(self) -> Request | None:
        """Read a request, with its body where that is small; None when none has begun."""
        scanned = 0  # so much of what has come may begin a head, and has no end of one
        while True:
            if self._forgiven != self.answered and self.held.startswith(b"\r\n", self.at):
                self._forgiven = self.answered  # one empty line is (RFC 9112, 2.2)
                self.take(2)
                scanned = 0
                if not self.held:
                    return None
            end = self.held.find(b"\r\n\r\n", self.at + max(0, scanned - 3)) + 4
            if end >= 4:
                break
            beginning = self.held[self.at :]
            check_beginning(beginning, scanned, self.server.limits)
            scanned = len(beginning)
            await self.more("head")
        data = self.take(end - self.at)
        if data == HTTP2_PREFACE:
            await self._linger(HTTP2_REFUSAL)
            return None
        method, target = self._read_head(data)
        self._started = perf_counter()
        head = self.head
        length, whole = head.length, self.server.limits.whole_body
        if not length and not head.chunked:
            body = NO_BODY
        elif length is not None and length <= whole and not head.expects:
            while self.unread() < length:
                await self.more("body")
            body = Body(self.take(length))
        else:
            self.body = body = Arriving(
                self, length, limit=self.server.limits.body_size,
                expects=head.expects and not self.held, finished=self.resume,
            )  # fmt: skip
        return Request(method, target, head.headers, body, self.peer)

    def _read_head(self, data: bytes) -> tuple[str, bytes]:
        """Set `head`; returns the method and the target."""
        limits, policy = self.server.limits, self.server.policy
        method, target, head, block = read_request(data, limits, self.server.lines)
        foreign = None
        if policy is not None:
            if self._loopback and (misdirected := policy.misdirected(head.headers)):
                raise HTTPError(421, misdirected)
            foreign = policy.foreign(head.headers)
            if foreign is not None and method not in SAFE_METHODS:
                raise HTTPError(403, foreign)
        small = not head.chunked and not head.expects and (head.length or 0) <= limits.whole_body
        self.head = head
        self._block = block if block and head.plain and small and foreign is None else _NO_BLOCK
        return method, target

    # Responses.

    def _respond(self, request: Request | None, response: Response, body: Any) -> bool:
        """Send a response whose body is small; whether the connection can be kept."""
        server, headers, status = self.server, response.headers, response.status
        try:
            lines = headers.lines if type(headers) is EncodedHeaders else encode_headers(headers)
        except ValueError:
            log.exception("bad headers in the response to %r", request)
            response = problem(500, _FAILED)
            lines, status, body = encode_headers(response.headers), 500, response.body
        keep = True
        if self.body is not None or server.draining or not self.head.plain:
            keep = self._keeps()
            lines += connection_line(keep=keep, http11=self.head.http11)
        start = server.starts.get(status) or self._start(status)
        size = len(body)
        if status in _BODILESS:
            size, data = 0, b"%b%b\r\n" % (start, lines)
        elif request is not None and request.method == "HEAD":
            size, data = 0, b"%b%bContent-Length: %d\r\n\r\n" % (start, lines, size)
        else:
            data = b"%b%bContent-Length: %d\r\n\r\n%b" % (start, lines, size, body)
        if self.held:  # more responses follow at once, which must not pile up
            server.coalescer.flush()
            self.transport.write(data)
        else:
            server.coalescer.send(self, data)
        self.answered += 1
        if server.observe is not None:
            server.observe(request, status, size, perf_counter() - self._started)
        return keep

    async def _stream(self, request: Request | None, response: Response) -> bool:
        """Send a response whose body is large, or produced; whether the connection can be kept."""
        body = response.body
        if isinstance(body, _BYTES):
            body = Streamed.of(body)
        status, http11, sent = response.status, self.head.http11, 0
        begun = keep = False
        try:
            length = body.length
            keep = self._keeps() and (length is not None or http11)
            lines = encode_headers(response.headers) + connection_line(keep=keep, http11=http11)
            if status not in _BODILESS and (length is not None or http11):
                lines += length_line(length)
            self.server.coalescer.flush()
            if not self.stop_sending():
                begun = True
                if self.body is not None:
                    self.body.expects = False  # it is too late to ask for the request's
                self.transport.write(b"%b%b\r\n" % (self._start(status), lines))
                if status not in _BODILESS and (request is None or request.method != "HEAD"):
                    sent = await self.send_stream(body, chunked=http11)
        except Exception:
            log.exception("the response to %r failed", request)
            keep = False
            if begun:  # it must not end as if it were complete
                self.transport.abort()
        finally:
            try:
                await close_stream(body)
            except Exception:
                log.exception("closing the body of a response failed")
        if not begun and not self.stop_sending():
            failed = problem(500, _FAILED)
            return self._respond(request, failed, failed.body)
        self.answered += 1
        if self.server.observe is not None:
            self.server.observe(request, status, sent, perf_counter() - self._started)
        return keep

    def _start(self, status: int) -> bytes:
        """A response's first lines; kept until the server's next tick."""
        start = self.server.starts[status] = response_start(status)
        return start

    def _keeps(self) -> bool:
        """Whether the connection can take another request after this one's response."""
        if not self.head.keep_alive or self.server.draining:
            return False
        body = self.body
        if body is None or body.ended:
            return True
        small = body.length is not None and body.left <= _DISCARDED
        return small and body.error is None and not body.expects

    def send_continue(self) -> None:
        if not self.transport.is_closing():
            self.server.coalescer.flush()
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def hang_up_if_idle(self) -> None:
        """Close unless a request has begun to arrive or is being answered."""
        if self.running is None:
            self.server.coalescer.flush()
            self.transport.close()

    async def _linger(self, last: bytes = b"") -> None:
        """Send FIN but read on for a moment: closing on unread bytes resets the connection."""
        self.server.coalescer.flush()
        self.transport.write(last)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        while not self.transport.is_closing():
            self.take(len(self.held))
            await self.more("linger")

    # Deadlines.

    def check(self, now: float) -> None:
        if self.waits != "body":
            self._window = None
        elif self._window is None:
            self._window = (now, self.arrived)
        elif (seconds := now - self._window[0]) >= _RATE_WINDOW:
            before, self._window = self._window[1], (now, self.arrived)
            if self.arrived - before < self.server.limits.body_rate * seconds:
                self.expired("body")
                return
        super().check(now)

    def waiting(self) -> Waiting:
        limits = self.server.limits
        if self.running is None:
            allowed = limits.keep_alive if self.answered else limits.header_deadline
            return "idle", allowed, self.answered
        return {
            "head": ("head", limits.header_deadline, self.answered),
            "body": ("body", limits.body_idle, self.arrived),
            "linger": ("linger", limits.linger, 0),
        }.get(self.waits, ("handler", inf, 0))

    def expired(self, what: str) -> None:
        if what in ("head", "body"):
            self.interrupt(HTTPError(408, f"The request's {what} took too long to arrive."))
        elif what == "idle":
            self.transport.close()
        else:
            self.transport.abort()


def _failed(request: Request | None, error: Exception) -> Response:
    """The response in the place of one that a handler, or reading the request, failed to give."""
    if isinstance(error, HTTPError):
        return problem(error.status, error.detail, headers=error.headers)
    log.error("handler failed on %r", request, exc_info=error)
    return problem(500, _FAILED)
