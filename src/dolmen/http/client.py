"""Requests to one server, over connections that are kept alive between them.

A request is sent again, once, only where that is safe: it never left, or it reads and the kept
connection it was written to turned out to be closed. Everything else is the caller's to decide.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from dolmen.errors import Unavailable
from dolmen.http.client_connection import ClientConnection, ClientResponse, NotSent
from dolmen.http.connection import WriteCoalescer
from dolmen.http.encoding import EncodedHeaders, encode_headers, length_line
from dolmen.http.head import Lines
from dolmen.http.limits import Timeouts
from dolmen.http.messages import Buffer, Stream, close_stream

TICK = 0.25
_TOGETHER = 8  # requests that may wait for each other; with more, the server is idle meanwhile
_TARGET = re.compile(rb"/[!-~]*\Z")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_READS = frozenset(("GET", "HEAD", "OPTIONS"))
_DEFAULT_TIMEOUTS = Timeouts()


class Client:
    """A far server and the connections to it. Used within one event loop; close it at the end.

    `connections` is the most that are open at once; of those that are free the last used is
    taken. `tls` is an ssl context for https. `clock` (seconds, as time.monotonic gives) is for
    tests of deadlines.
    """

    loop: asyncio.AbstractEventLoop
    coalescer: WriteCoalescer

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        connections: int = 64,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bracketed = f"[{host}]" if ":" in host else host
        self.name = f"{bracketed}:{port}"
        self.timeouts = timeouts
        self.lines: Lines = {}
        self.connections: set[ClientConnection] = set()
        self._address = host, port
        self._host = (bracketed if port == (443 if tls else 80) else self.name).encode("ascii")
        self._tls = tls
        self._clock = clock
        self._limit = connections
        self._opening = 0
        self._idle: list[ClientConnection] = []
        self._waiters: deque[asyncio.Future[ClientConnection | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._started = self._closed = False
        self._emptied = asyncio.Event()

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
        no harm (the default for GET, HEAD and OPTIONS).

        Raises Unavailable when the server could not be asked, which for
        requests that read is every failure; OutcomeUnknown when a request that
        may have changed something got no response; ValueError for what can't be
        sent. What the body's stream raises comes out as it is.
        """
        raw = target.encode("ascii") if isinstance(target, str) else target
        if not _TARGET.match(raw) or not _METHOD.match(method):
            raise ValueError(f"{method} {target!r} can't be the start of a request")
        if reads is None:
            reads = method in _READS
        stream: Stream | None = None
        expect = expect_continue and body is not None
        lines = encode_headers(headers)
        if isinstance(body, (bytes, bytearray, memoryview)):
            lines += length_line(len(body))
        elif body is not None:
            stream = body
            lines += length_line(stream.length)
        elif method in ("POST", "PUT", "PATCH"):
            lines += length_line(0)
        if expect:
            lines += b"Expect: 100-continue\r\n"
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method.encode(), raw, self._host, lines)
        send = partial(
            ClientConnection.exchange,
            head=head, body=body, expect=expect, head_only=method == "HEAD", reads=reads,
        )  # fmt: skip
        try:
            try:
                return await send(self._take_idle() or await self._acquire())
            except NotSent:
                if stream is not None:
                    raise
            for connection in self._idle[:]:  # kept as long as the closed one, or longer
                self.forget(connection)
                connection.transport.abort()
            return await send(await self._acquire())
        finally:
            if stream is not None:
                await close_stream(stream)

    async def close(self) -> None:
        """Cut every connection, and wait until they are gone; requests under way fail."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._waiters:
            self._pass_on(None)
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # The connections.

    def _take_idle(self) -> ClientConnection | None:
        """The connection used last, unless it is closing."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _acquire(self) -> ClientConnection:
        """A connection: an idle one, a new one, or the next that becomes free."""
        if not self._started:
            self._started = True
            self.loop = asyncio.get_running_loop()
            self.coalescer = WriteCoalescer(self.loop, most=_TOGETHER)
        end = self.loop.time() + self.timeouts.pool
        while not self._closed:
            connection = self._take_idle()
            if connection is not None:
                return connection
            if len(self.connections) + self._opening < self._limit:
                return await self._connect()
            connection = await self._wait_in_line(end)
            if connection is not None and not connection.transport.is_closing():
                return connection
        raise Unavailable(f"the client for {self.name} is closed")

    async def _wait_in_line(self, end: float) -> ClientConnection | None:
        """A connection, or None for the right to look again; until the loop's time is `end`."""
        waiter: asyncio.Future[ClientConnection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=end - self.loop.time())
        except asyncio.CancelledError:
            if waiter.done():
                self._pass_on(waiter.result())
            raise
        finally:
            waiter.cancel()
        if waiter.cancelled():
            raise Unavailable(f"all {self._limit} connections to {self.name} stayed in use")
        return waiter.result()

    async def _connect(self) -> ClientConnection:
        self._opening += 1
        task = self.loop.create_task(self._open())
        try:
            await asyncio.wait([task], timeout=self.timeouts.connect)
            if task.done():
                if task.result().error is None:
                    return task.result()
                raise Unavailable(f"{self.name} closed a new connection")  # noqa: TRY301
            what = f"did not accept a connection within {self.timeouts.connect:g} s"
            raise Unavailable(f"{self.name} {what}")  # noqa: TRY301
        except BaseException:
            made = task.done() and not task.cancelled() and task.exception() is None
            task.cancel()
            self._pass_on(task.result() if made else None)
            raise
        finally:
            self._opening -= 1
            del task  # its error would hold this frame, and this frame it

    async def _open(self) -> ClientConnection:
        try:
            _, connection = await self.loop.create_connection(
                lambda: ClientConnection(self), *self._address, ssl=self._tls
            )
        except OSError as error:
            raise Unavailable(f"can't connect to {self.name}: {error}") from error
        if connection.lost or self._closed:
            connection.transport.abort()
            what = f"the client for {self.name} is closed"
            raise Unavailable(what if self._closed else f"{self.name} closed a new connection")
        self.connections.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)
        return connection

    def release(self, connection: ClientConnection) -> None:
        """Take back a connection that can carry another request."""
        if self._closed:
            connection.transport.abort()
        elif self._waiters:
            self._pass_on(connection)
        else:
            self._idle.append(connection)

    def _pass_on(self, connection: ClientConnection | None) -> None:
        """Give a connection, or the right to open one, to who waits longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is not None:
            self._idle.append(connection)

    def forget(self, connection: ClientConnection) -> None:
        """A connection ends: nobody gets it any more."""
        if connection in self.connections:
            self.connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._pass_on(None)
            if not self.connections:
                self._emptied.set()

    def _tick(self) -> None:
        self._timer = None
        self.sweep()
        if self.connections and not self._closed:
            self._timer = self.loop.call_later(TICK, self._tick)

    def sweep(self) -> None:
        """Close the connections whose deadlines are over; called by the timer."""
        now = self._clock()
        for connection in list(self.connections):
            connection.check(now)
