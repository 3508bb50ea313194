"""The server's side of a connection: bytes in, requests out, and nothing that is not HTTP/1.1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from dolmen.errors import BadContent
from dolmen.http.body import NO_BODY, Body
from dolmen.http.deadlines import Watch
from dolmen.http.exchange import Exchange
from dolmen.http.head import (
    Framing,
    replace_host,
    request_framing,
    resolve_target,
    split_request_line,
)
from dolmen.http.inflow import HIGH_WATER, Inflow
from dolmen.http.messages import Address, Request
from dolmen.http.origins import SAFE_METHODS
from dolmen.http.problems import HTTPError, problem

if TYPE_CHECKING:
    import asyncio

    from dolmen.http.server import Server

_END = b"\r\n\r\n"
_PLAIN_LINE = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (/[!\"$-~]*) HTTP/1\.1")
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "PUT", "POST", "DELETE")}
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+( |\Z)")
_REFUSED = Framing(b"\r\nConnection: close\r\n\r\n", http11=True)


class ServerConnection(Exchange):
    """Cuts the bytes of one connection into requests and hands each to the exchange.

    llhttp checks every head, fed up to the empty line and no further, so that
    pipelined bytes wait (`held`) until their turn. Bodies with a length are counted,
    not parsed. The header lines of the last request and what they mean are kept, as
    a client mostly sends the same ones again; before those a plain request line
    is told by a pattern alone.
    """

    __slots__ = (
        "_advancing", "_fed", "_lines", "_loopback", "_parser", "_skipped", "_small", "_watch",
        "lingering", "peer", "pending",
    )  # fmt: skip

    def __init__(self, server: Server, *, loopback: bool) -> None:
        super().__init__(server)
        self._loopback = loopback
        self._parser = HttpRequestParser(None)
        self._fed = 0
        self._skipped = False
        self._lines: bytes | None = None
        self.pending: tuple[str, bytes, Framing] | None = None
        self.lingering = False
        self._small = min(4096, server.limits.request_line)  # no limit can be exceeded by so little
        self.peer: Address = None
        self._advancing = False
        self._watch = Watch()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        connections = self.server.connections
        connections.add(self)
        limit = self.server.limits.connections
        if len(connections) > limit:
            detail = "This server has all the connections it can serve; try again shortly."
            self.refuse(HTTPError(503, detail, [(b"Retry-After", b"1")]))
            if len(connections) > limit + limit // 8:  # each costs a descriptor while it lingers
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        super().connection_lost(exc)
        self.server.forget(self)
        if self.inflow is not None:
            self.inflow.fail(BadContent("The client went away before the end of its body."))
        if self.steps is not None:
            self.steps.cancel()

    def eof_received(self) -> bool | None:
        """Called by the loop: the other side will send no more."""
        self.server.outbox.flush()
        return None  # the transport sends what is written and closes

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self.idle and not self.held and not self._write_paused:
            lines = self._lines
            if lines is not None:
                at = data.find(b"\r\n")
                if data.startswith(lines, at) and self._take_repeated(data, at, at + len(lines)):
                    return
            end = data.find(_END) + 4
            if 4 <= end <= self._small and data[0] > 32:
                self._take_first(data, end)
                return
        if self.lingering:
            return
        inflow = self.inflow
        if inflow is not None and not inflow.ended:
            self.arrived += len(data)
            data = inflow.feed(data)
            if inflow.ended:
                self.body_ended()
            if not data:
                return
        if self.pending is not None:
            self.arrived += len(data)
        self.held += data
        self._advance()

    def _take_repeated(self, data: bytes, line: int, end: int) -> bool:
        """Start on a whole request with the header lines of the last; False if it is none.

        Its request line is `data[:line]`, its body begins at `end`.
        """
        words = _PLAIN_LINE.fullmatch(data, 0, line)
        framing = self._framing
        length = len(data) - end
        if words is None or line > self._small or length != (framing.length or 0):
            return False
        self._skipped = False
        method, target = words.groups()
        body = Body(data[end:]) if length else NO_BODY
        request = Request(_METHODS[method], target, framing.headers, body, self.peer)
        self.run(request, framing)
        return True

    def _take_first(self, data: bytes, end: int) -> None:
        """Start on the request whose short head is `data[:end]`; what follows waits."""
        head = data[:end]
        try:
            self._parser.feed_data(head)
        except HttpParserUpgrade:
            self._parser = HttpRequestParser(None)
        except HttpParserError as error:
            self._refuse_malformed(error, head)
            return
        if end < len(data):
            self.held += data[end:]
        self._take_head(head)

    def _advance(self) -> None:
        """Take what is held as far as it goes."""
        if self._advancing:
            return
        self._advancing = True
        try:
            self._take_held()
        finally:
            self._advancing = False

    def _take_held(self) -> None:
        held = self.held
        while held and not self.lingering and not self.transport.is_closing():
            if self.pending is not None:
                length = self.pending[2].length or 0
                if len(held) < length:
                    return
                body = bytes(held[:length])
                del held[:length]
                self._run_pending(Body(body))
            elif not self.idle or self._write_paused:
                if len(held) > HIGH_WATER:
                    self.pause()
                return
            elif not self._read_head():
                return

    def _read_head(self) -> bool:
        """Feed what is held of a head to the parser; True when the head was complete."""
        held = self.held
        if not self._fed:
            if held[0] in b"\r\n":
                # One empty line before a request is forgiven (RFC 9112, 2.2), if well formed.
                if self._skipped or not b"\r\n".startswith(held[:2]):
                    self.refuse(HTTPError(400, "There are stray line ends before the request."))
                    return False
                if len(held) > 1:
                    self._skipped = True
                    del held[:2]
                return len(held) > 1 or not held
            if not self._skipped:  # the deadline runs from the first byte
                self._skipped = True
                self.since = self.server.now
            method = _METHOD.match(held)
            if method is not None and not method[1] and len(held) < self.server.limits.request_line:
                return False  # llhttp could not tell an unknown method from garbage yet
        end = held.find(_END, max(0, self._fed - 3))
        stop = len(held) if end < 0 else end + 4
        line = held.find(b"\r\n")
        limits = self.server.limits
        if (line if line >= 0 else stop - held.endswith(b"\r")) > limits.request_line:
            self.refuse(HTTPError(414, f"The request line exceeds {limits.request_line} bytes."))
            return False
        if line >= 0 and stop - line > limits.header_size:
            self.refuse(HTTPError(431, f"The headers exceed {limits.header_size} bytes."))
            return False
        try:
            self._parser.feed_data(bytes(held[self._fed : stop]))
        except HttpParserUpgrade:
            self._parser = HttpRequestParser(None)
        except HttpParserError as error:
            self._refuse_malformed(error, held)
            return False
        self._fed = stop
        if end < 0:
            return False
        head = bytes(held[:stop])
        del held[:stop]
        self._fed = 0
        self._take_head(head)
        return True

    def _refuse_malformed(self, error: HttpParserError, head: bytes | bytearray) -> None:
        if isinstance(error, HttpParserInvalidMethodError) and _METHOD.match(head):
            self.refuse(HTTPError(501, "This request method is not known here."))
        else:
            self.refuse(HTTPError(400, f"The request is malformed: {error}."))

    def _take_head(self, head: bytes) -> None:
        """Start on a request whose complete head the parser has accepted."""
        self._skipped = False
        at = head.find(b"\r\n")
        try:
            method, target, framing = self._examine(head[:at], head[at:])
            name = method.decode("ascii")
            if framing.foreign is not None and name not in SAFE_METHODS:
                raise HTTPError(403, framing.foreign)  # noqa: TRY301 - one way to refuse
            length = framing.length
            if length is not None and length > self.server.limits.body_size:
                allowed = self.server.limits.body_size
                raise HTTPError(413, f"The body is larger than the {allowed} bytes allowed here.")  # noqa: TRY301
        except HTTPError as error:
            self.refuse(error)
            return
        if not length and not framing.chunked:
            self.run(Request(name, target, framing.headers, NO_BODY, self.peer), framing)
            return
        self._parser = HttpRequestParser(None)  # the old one waits for the body
        self._take_body(name, target, framing)

    def _examine(self, line: bytes, lines: bytes) -> tuple[bytes, bytes, Framing]:
        limits = self.server.limits
        if len(line) > limits.request_line:
            raise HTTPError(414, f"The request line exceeds {limits.request_line} bytes.")
        if lines.count(b"\r\n") - 2 > limits.header_count or len(lines) > limits.header_size:
            raise HTTPError(
                431, f"There are more than {limits.header_count} headers or they are too long."
            )
        method, target, http11 = split_request_line(line)
        target, authority = resolve_target(method, target)
        policy = self.server.policy
        framing = request_framing(lines, http11=http11, policy=policy, loopback=self._loopback)
        if authority is not None:
            lines = replace_host(lines, authority)
            framing = request_framing(lines, http11=http11, policy=policy, loopback=self._loopback)
        elif (
            http11
            and framing.foreign is None
            and not framing.chunked
            and not framing.expects
            and (framing.length or 0) <= limits.whole_body
        ):
            self._lines = lines
            self._framing = framing
            return method, target, framing
        self._lines = None
        return method, target, framing

    def _take_body(self, method: str, target: bytes, framing: Framing) -> None:
        length = framing.length
        limits = self.server.limits
        self._watch.body_begins(self)
        if length is not None and length <= limits.whole_body and not framing.expects:
            self.idle = False
            self.pending = (method, target, framing)
            if len(self.held) >= length:
                body = bytes(self.held[:length])
                del self.held[:length]
                self._run_pending(Body(body))
            return
        self.expecting = framing.expects
        self.inflow = inflow = Inflow(self, length, limits.body_size)
        if self.held:
            self.expecting = False
            held = bytes(self.held)
            self.held.clear()
            self.arrived += len(held)
            self.held += inflow.feed(held)
        request = Request(method, target, framing.headers, Body(None, inflow), self.peer)
        self.run(request, framing)

    def _run_pending(self, body: Body) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            method, target, framing = pending
            self.run(Request(method, target, framing.headers, body, self.peer), framing)

    def body_ended(self) -> None:
        """The body is complete: listen on, for the client going away or its next request."""
        self.resume()
        if self.idle is False and self.request is None and not self.lingering:
            self._next()

    def after_answer(self, *, keep: bool) -> None:
        """Go on with the next request, or make an end."""
        inflow = self.inflow
        if self.lost:
            return
        if inflow is not None and not inflow.ended:
            inflow.discard()
            if keep:
                self.resume()
            else:
                self._linger()
        elif keep:
            self._next()
        else:
            self.transport.close()

    def _next(self) -> None:
        self.inflow = None
        self.idle = True
        if self.server.draining:
            self.transport.close()
            return
        if self._paused:
            self.resume()
        if self.held and not self._write_paused:
            self._advance()

    def resume_writing(self) -> None:
        """Called by the loop: the socket takes more again."""
        super().resume_writing()
        if self.idle:
            self.resume()
            self._advance()

    def refuse(self, error: HTTPError) -> None:
        """Answer without a handler and close; the rest of what comes is thrown away."""
        self.idle = False
        self.pending = None
        self._lines = None
        self._framing = _REFUSED
        response = problem(error.status, error.detail, headers=error.headers)
        head = self._head(response, len(response.body), keep=False)  # type: ignore[arg-type]
        self.transport.write(head + response.body)  # type: ignore[operator]
        observe = self.server.observe
        if observe is not None:
            observe(None, error.status, len(response.body), 0.0)  # type: ignore[arg-type]
        self._linger()

    def _linger(self) -> None:
        """Send FIN but read on for a moment: closing on unread bytes would reset the connection
        and could take the answer from the client.
        """
        self.lingering = True
        self.held.clear()
        self.since = self.server.now
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume()

    def hang_up_if_idle(self) -> None:
        """Close unless a request has begun to arrive or is being answered. The outbox is empty."""
        if self.idle and not self.held:
            self.transport.close()

    def cut_body(self, error: HTTPError) -> None:
        """Stop waiting for a body: its reader gets the error, or the client if nobody reads."""
        if self.pending is not None:
            self.refuse(error)
        elif self.request is None or self.inflow is None:
            self.transport.abort()
        else:
            self.inflow.fail(error)

    def check(self, now: float) -> None:
        """Hold the peer to its deadlines; called about once a second."""
        self._watch.check(self, now)
