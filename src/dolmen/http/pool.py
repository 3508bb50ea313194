"""Connections to one server, kept alive between requests."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dolmen.errors import Unavailable
from dolmen.http.calls import ClientConnection
from dolmen.http.outbox import Outbox

TICK = 0.25
_TOGETHER = 8
"""Requests that may wait for each other; with more, the far server stands idle meanwhile."""
Opening = asyncio.Task[tuple[asyncio.Transport, ClientConnection]]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for a server, in seconds; each may be overrun by a quarter of a second."""

    connect: float = 5.0
    """For the connection, TLS included."""
    pool: float = 30.0
    """For one of the pool's connections, when all are in use."""
    first_byte: float = 60.0
    """From the request's last byte to the answer's head."""
    idle: float = 30.0
    """For the next bytes of a body, either way."""
    keep_alive: float = 30.0
    """How long an unused connection is kept; shorter than the server keeps it."""


class Pool:
    """Hands out connections, the last used first, and never more than `limit` at once.

    Who finds none waits in line. A timer looks after the deadlines of all
    connections together while there are any.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        limit: int,
        timeouts: Timeouts,
        clock: Callable[[], float] | None,
    ) -> None:
        self.host = host
        self.port = port
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.timeouts = timeouts
        self.loop = asyncio.get_running_loop()
        self.clock = clock or time.monotonic
        self.outbox = Outbox(self.loop, most=_TOGETHER)
        self._tls = tls
        self._limit = limit
        self._opening = 0
        self._idle: list[ClientConnection] = []
        self._connections: set[ClientConnection] = set()
        self._waiters: deque[asyncio.Future[ClientConnection | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied = asyncio.Event()

    def take(self) -> ClientConnection | None:
        """An idle connection on which nothing waits to be read, if there is one.

        `release`, or closing it, gives it back.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            if not connection.has_input():
                return connection
            connection.transport.abort()
            self.forget(connection)
        return None

    async def acquire(self, *, fresh: bool) -> ClientConnection:
        """As `take`, but opens a connection or waits for one; `fresh` asks for a new one.

        Raises Unavailable.
        """
        while not self._closed:
            if fresh:
                self._drop_idle()
            elif (connection := self.take()) is not None:
                return connection
            if len(self._connections) + self._opening < self._limit:
                return await self._connect()
            given = await self._wait_in_line()
            if given is not None and not given.transport.is_closing():
                return given
        raise Unavailable(f"the client for {self.name} is closed")

    def _drop_idle(self) -> None:
        while self._idle:
            connection = self._idle.pop()
            connection.transport.abort()
            self.forget(connection)

    async def _wait_in_line(self) -> ClientConnection | None:
        """A connection, or None for the right to look again."""
        waiter: asyncio.Future[ClientConnection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=self.timeouts.pool)
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
        task = self.loop.create_task(
            self.loop.create_connection(
                lambda: ClientConnection(self), self.host, self.port, ssl=self._tls
            )
        )
        try:
            await asyncio.wait([task], timeout=self.timeouts.connect)
            connection = self._opened(task)
        except BaseException:
            task.cancel()
            task.add_done_callback(_close_unwanted)
            self._pass_on(None)
            raise
        finally:
            self._opening -= 1
        self._connections.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)
        return connection

    def _opened(self, task: Opening) -> ClientConnection:
        """The connection that was made; raises Unavailable with the reason when it was not."""
        if not task.done():
            patience = self.timeouts.connect
            raise Unavailable(f"{self.name} did not accept a connection within {patience:g} s")
        try:
            connection = task.result()[1]
        except OSError as error:
            raise Unavailable(f"can't connect to {self.name}: {error}") from error
        if self._closed:
            raise Unavailable(f"the client for {self.name} is closed")
        if connection.lost:
            raise Unavailable(f"{self.name} closed a new connection at once")
        return connection

    def release(self, connection: ClientConnection) -> None:
        """Take a connection back whose request is over."""
        if self._closed:
            connection.transport.abort()
        else:
            self._pass_on(connection)

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
        """Called when a connection is lost."""
        if connection in self._connections:
            self._connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._pass_on(None)
            if not self._connections:
                self._emptied.set()

    def _tick(self) -> None:
        self._timer = None
        self.sweep()
        if self._connections and not self._closed:
            self._timer = self.loop.call_later(TICK, self._tick)

    def sweep(self) -> None:
        """Close the connections whose deadlines are over; called by the timer."""
        now = self.clock()
        for connection in list(self._connections):
            connection.check(now)

    async def close(self) -> None:
        """Cut every connection, and wait until they are gone."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._waiters:
            self._pass_on(None)
        for connection in list(self._connections):
            connection.transport.abort()
        while self._connections:
            self._emptied.clear()
            await self._emptied.wait()


def _close_unwanted(task: Opening) -> None:
    """Close a connection that came after everybody had stopped waiting for it."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()
