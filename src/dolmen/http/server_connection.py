"""The server's side of a connection: bytes in, requests out, and nothing that is not HTTP/1.1.

Read `connection` and `exchange` first. Here are the limits and deadlines a client is held to.
"""

from __future__ import annotations

import asyncio
import time
from math import inf

from dolmen.errors import BadContent
from dolmen.http.body import HIGH_WATER, NO_BODY, Body, BodyStream
from dolmen.http.connection import Waiting
from dolmen.http.encoding import CLOSE, encode_headers, join_response
from dolmen.http.exchange import Exchange, Shared
from dolmen.http.head import (
    Blocks,
    Head,
    read_headers,
    read_request_head,
    read_request_line,
    recognize,
    remember,
)
from dolmen.http.messages import Headers, problem
from dolmen.http.origins import SAFE_METHODS
from dolmen.http.problems import HTTPError

_RATE_WINDOW = 60.0  # seconds over which the least rate of a body is taken
_REFUSED = Head(Headers({b"connection": b"close"}), http11=True)


class ServerConnection(Exchange):
    """Takes the requests of one connection. `blocks` are those its listener has read before."""

    __slots__ = (
        "_arrived",
        "_blocks",
        "_empty_line",
        "_line",
        "_loopback",
        "_target_max",
        "_window",
    )

    def __init__(self, shared: Shared, blocks: Blocks, *, loopback: bool) -> None:
        super().__init__(shared)
        self._blocks = blocks
        self._loopback = loopback
        self._target_max = shared.limits.request_line - len("DELETE  HTTP/1.1")
        self._line = ("", b"")  # method and target of the request that arrives
        self._empty_line = False  # one was skipped before the request
        self._arrived = 0  # as of the last check
        self._window: tuple[float, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        connections = self.shared.connections
        connections.add(self)
        limit = self.shared.limits.connections
        if len(connections) > limit:
            later = [(b"Retry-After", b"1")]
            self._refuse(HTTPError(503, "There are too many connections; try again.", later))
            if len(connections) > limit + limit // 8:  # each costs a descriptor while it lingers
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.shared.connections.discard(self)
        if not self.shared.connections:
            self.shared.emptied.set()
        if self.body is not None:
            self.body.fail(BadContent("The client went away before the end of its body."))
        if self._run is not None:
            self._run.cancel()
        self.shared.coalescer.withdraw(self.transport)

    def eof_received(self) -> bool | None:
        self.shared.coalescer.flush()
        return None  # the transport sends what is written and closes

    # Requests.

    def data_received(self, data: bytes) -> None:
        if self.idle and not self.held and not self.collecting and not self.write_paused:
            known = recognize(data, self._blocks)
            if known is not None:
                method, target, head, end = known
                length = len(data) - end
                if length == (head.length or 0) and len(target) <= self._target_max:
                    self.head = head
                    self._empty_line = False
                    self._answer(method, target, Body(data[end:]) if length else NO_BODY)
                    return
        if not self.lingering:
            super().data_received(data)

    def ready(self) -> bool:
        if self.idle and not self.write_paused:
            return True
        if self.lingering:
            self.held.clear()
        elif len(self.held) > HIGH_WATER:  # more requests than one at a time
            self.pause()
        return False

    def take_beginning(self, *, good: bool) -> bool:
        limits, held = self.shared.limits, self.held
        line = held.find(b"\r\n")
        if held == b"\r\n" and not self._empty_line:
            self._skip_line(held)
        elif (line if line >= 0 else len(held) - held.endswith(b"\r")) > limits.request_line:
            self._refuse(HTTPError(414, f"The request line exceeds {limits.request_line} bytes."))
        elif line >= 0 and len(held) - line > limits.header_size:
            self._refuse(HTTPError(431, f"The headers exceed {limits.header_size} bytes."))
        elif not good or not line:
            self._refuse(HTTPError(400, "This is not HTTP/1.1."))
        return False

    def _skip_line(self, held: bytearray) -> None:
        """Forgive one empty line before a request (RFC 9112, 2.2)."""
        self._empty_line = True
        self._scanned = 0
        held.clear()

    def take_head(self, data: bytes) -> bool:
        if data.startswith(b"\r\n") and not self._empty_line:
            data = data[2:]
        self._empty_line = False
        at = data.find(b"\r\n")
        try:
            self.head = self._read_head(data[:at], data[at:])
        except HTTPError as error:
            self._refuse(error)
            return False
        return True

    def _read_head(self, line: bytes, block: bytes) -> Head:
        limits, policy = self.shared.limits, self.shared.policy
        if len(line) > limits.request_line:
            raise HTTPError(414, f"The request line exceeds {limits.request_line} bytes.")
        if block.count(b"\r\n") - 2 > limits.header_count or len(block) > limits.header_size:
            many = f"There are more than {limits.header_count} headers or they are too long."
            raise HTTPError(431, many)
        method, target, authority, http11 = read_request_line(line)
        head = read_request_head(read_headers(block, self.shared.lines), authority, http11=http11)
        if policy is not None:
            if self._loopback and (misdirected := policy.misdirected(head.headers)):
                raise HTTPError(421, misdirected)
            foreign = policy.foreign(head.headers)
            if foreign is not None and method not in SAFE_METHODS:
                raise HTTPError(403, foreign)
            head.same_site = foreign is None
        if head.length is not None and head.length > limits.body_size:
            raise HTTPError(
                413, f"The body is larger than the {limits.body_size} bytes allowed here."
            )
        self._line = method, target
        small = not head.chunked and not head.expects and (head.length or 0) <= limits.whole_body
        if http11 and authority is None and head.same_site and small:
            remember(block, head, self._blocks)
        return head

    def take_message(self, body: Body) -> None:
        self._expecting = self.head.expects and self.body is not None and not self.body.total
        method, target = self._line
        self._answer(method, target, body)

    def body_ended(self) -> None:
        self.resume()  # for the client going away, or its next request
        if self.request is None and not self.idle and not self.lingering:
            self._next()

    def abandon(self, stream: BodyStream) -> None:
        pass  # the request may still be answered

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.idle:
            self.resume()
            self.cut()

    def _refuse(self, error: HTTPError) -> None:
        """Answer without a handler and close; the rest of what comes is thrown away."""
        self.idle = self.collecting = False
        self.head = _REFUSED
        self._started = time.perf_counter()
        response = problem(error.status, error.detail, headers=error.headers)
        lines, body = encode_headers(response.headers), response.body
        assert isinstance(body, bytes)
        self.shared.coalescer.flush()
        start = self.shared.starts.of(error.status)
        self.transport.write(join_response(start, lines + CLOSE, body))
        self._observe(None, error.status, len(body))
        self._linger()

    # Deadlines.

    def check(self, now: float) -> None:
        if not self._awaits_body():
            self._window = None
        elif self._window is None:
            self._window = (now, self.arrived)
        elif (seconds := now - self._window[0]) >= _RATE_WINDOW:
            count = self.arrived - self._window[1]
            self._window = (now, self.arrived)
            if count < self.shared.limits.body_rate * seconds:
                self.expired("body")
                return
        super().check(now)
        self._arrived = self.arrived

    def _awaits_body(self) -> bool:
        body = self.body
        if self.idle or self.lingering:
            return self.collecting
        if body is None or body.ended:
            return self.request is None
        # Its reader may just have been woken by what arrived last.
        return body.waiter is not None or self.arrived != self._arrived or self.request is None

    def waiting(self) -> Waiting:
        limits = self.shared.limits
        if self.lingering:
            return "linger", limits.linger, 0
        if self._awaits_body():
            return "body", limits.body_idle, self.arrived
        if not self.idle:
            return "handler", inf, 0
        if self.held:
            return "head", limits.header_deadline, self.answered
        return "idle", limits.keep_alive if self.answered else limits.header_deadline, self.answered

    def expired(self, what: str) -> None:
        slow = HTTPError(408, f"The request's {what} took too long to arrive.")
        if what == "head" or self.collecting:
            self._refuse(slow)
        elif what == "idle":
            self.transport.close()
        elif what == "body" and self.request is not None and self.body is not None:
            self.body.fail(slow)
        else:
            self.transport.abort()
