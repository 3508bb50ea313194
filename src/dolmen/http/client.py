"""Requests to one server."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence
from functools import partial

from dolmen.errors import Unavailable
from dolmen.http.calls import Call, ClientResponse, Stale
from dolmen.http.encoding import EncodedHeaders, encode_headers
from dolmen.http.messages import Buffer, Stream
from dolmen.http.pool import Pool, Timeouts

_TARGET = re.compile(rb"/[!-~]*\Z")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_READS = frozenset(("GET", "HEAD", "OPTIONS"))
_COMMON = _READS | {"POST", "PUT", "DELETE"}
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_COPY_UP_TO = 64 * 1024
_CONTINUE_PATIENCE = 2.0
_DEFAULT_TIMEOUTS = Timeouts()


class Client:
    """A far server and the connections to it. Used within one event loop; close it at the end.

    `connections` is the most that are open at once, `tls` an ssl context for https.
    `clock` (seconds, as time.monotonic gives) is for tests of deadlines.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        connections: int = 64,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._pool: Pool | None = None
        self._make_pool = partial(Pool, host, port, tls, connections, timeouts, clock)
        name = f"[{host}]" if ":" in host else host
        default = port == (443 if tls else 80)
        self._host = (name if default else f"{name}:{port}").encode("ascii")

    @property
    def pool(self) -> Pool:
        """The connections; made at the first request."""
        pool = self._pool
        if pool is None:
            self._pool = pool = self._make_pool()
        return pool

    async def request(
        self,
        method: str,
        target: str | bytes,
        headers: Sequence[tuple[bytes, bytes]] | EncodedHeaders = (),
        body: Buffer | Stream | None = None,
        *,
        expect_continue: bool = False,
        reads: bool | None = None,
    ) -> ClientResponse:
        """Send one request and return the response once its head (a small one: all of it) is here.

        `target` is a path with query, percent-encoded. A `Stream` body is sent
        chunked when its length is not known, is stopped when the server answers
        before its end, and is closed in any case. `reads` says that asking twice does
        no harm (the default for GET, HEAD and OPTIONS): such a request is sent
        again, once, if the kept-alive connection it was first sent on turns
        out to be closed, unless its body was a stream.

        Raises Unavailable when the server could not be asked, which for
        requests that read is every failure; OutcomeUnknown when a request that
        may have changed something got no answer; ValueError for what can't be
        sent. What the body's stream raises comes out as it is.
        """
        if reads is None:
            reads = method in _READS
        raw = target.encode("ascii") if isinstance(target, str) else target
        if not _TARGET.match(raw) or (method not in _COMMON and not _METHOD.match(method)):
            raise ValueError(f"{method} {target!r} can't be the start of a request")
        lines = encode_headers(headers)
        extra = b""
        stream: Stream | None = None
        if body is None:
            if method in ("POST", "PUT", "PATCH"):
                extra = b"Content-Length: 0\r\n"
        elif isinstance(body, (bytes, bytearray, memoryview)):
            extra = b"Content-Length: %d\r\n" % len(body)
        else:
            stream = body
            length = stream.length
            extra = b"Content-Length: %d\r\n" % length if length is not None else _CHUNKED
        if expect_continue and body is not None:
            extra += b"Expect: 100-continue\r\n"
        else:
            expect_continue = False
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b\r\n" % (
            method.encode(), raw, self._host, lines, extra,
        )  # fmt: skip
        try:
            try:
                return await self._send(method, head, body, reads, expect_continue, fresh=False)
            except Unavailable as error:
                if stream is not None or not isinstance(error.__cause__, Stale):
                    raise
            return await self._send(method, head, body, reads, expect_continue, fresh=True)
        finally:
            if stream is not None:
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()

    async def _send(
        self,
        method: str,
        head: bytes,
        body: Buffer | Stream | None,
        reads: bool,
        expect: bool,
        *,
        fresh: bool,
    ) -> ClientResponse:
        pool = self.pool
        connection = None if fresh else pool.take()
        if connection is None:
            connection = await pool.acquire(fresh=fresh)
        call, answer = connection.begin(head_only=method == "HEAD", reads=reads)
        try:
            if body is None:
                pool.outbox.send(connection.transport, head)
            else:
                await self._send_body(call, head, body, expect=expect)
            call.sent = not connection.stop_sending()
            return await answer
        except BaseException:
            call.give_up()
            raise
        finally:
            answer.cancel()
            call.answer = None  # it holds the response, which the caller may forget unread

    async def _send_body(
        self, call: Call, head: bytes, body: Buffer | Stream, *, expect: bool
    ) -> None:
        connection = call.connection
        transport = connection.transport
        if expect:
            call.continued = connection.loop.create_future()
            transport.write(head)
            head = b""
            await asyncio.wait([call.continued], timeout=_CONTINUE_PATIENCE)
            if connection.stop_sending():
                return
        if not isinstance(body, (bytes, bytearray, memoryview)):
            transport.write(head)
            await connection.send_stream(body, chunk=body.length is None)
        elif len(body) <= _COPY_UP_TO:
            connection.pool.outbox.send(transport, head + body)
        else:
            transport.writelines((head, body))

    async def close(self) -> None:
        """Cut every connection; requests under way fail."""
        if self._pool is not None:
            await self._pool.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
