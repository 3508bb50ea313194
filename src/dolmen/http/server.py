"""A server on one or more listening sockets, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from dolmen.http.encoding import Heads
from dolmen.http.exchange import Exchange, Handler, Observer
from dolmen.http.limits import Limits
from dolmen.http.listening import bind
from dolmen.http.messages import Address
from dolmen.http.origins import SitePolicy, is_loopback
from dolmen.http.outbox import Outbox
from dolmen.http.protocol import ServerConnection

TICK = 1.0
_TOGETHER = 64
"""Answers that may wait for each other; about a millisecond's work."""
_DEFAULT_LIMITS = Limits()
_DEFAULT_POLICY = SitePolicy()


class Server:
    """Connections, their deadlines and their end. Made by `start_server`.

    One timer a second looks after all connections: `sweep()`, which tests call
    themselves after moving an injected `clock`.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        policy: SitePolicy | None,
        observe: Observer | None,
        clock: Callable[[], float],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler = handler
        self.limits = limits
        self.policy = policy
        self.observe = observe
        self.heads = Heads()
        self.outbox = Outbox(self.loop, most=_TOGETHER)
        self.connections: set[ServerConnection] = set()
        self.running: set[Exchange] = set()  # those whose handler or answer waits for something
        self.draining = False
        self.addresses: list[Address] = []
        self.now = 0.0
        self._clock = clock
        self._listeners: list[asyncio.AbstractServer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()
        self.sweep()

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve connections to a bound socket; it is closed with the server."""
        address = sock.getsockname()
        loopback = isinstance(address, tuple) and is_loopback(address[0])
        listener = await self.loop.create_server(
            lambda: ServerConnection(self, loopback=loopback), sock=sock, ssl=tls, backlog=2048
        )
        self._listeners.append(listener)
        self.addresses.append(address[:2] if isinstance(address, tuple) else None)

    def tick(self) -> None:
        """Sweep now and once a second from now on, until closed."""
        self._timer = self.loop.call_later(TICK, self.tick)
        self.sweep()

    def sweep(self) -> None:
        """Take the time, and close the connections whose deadlines are over."""
        self.now = now = self._clock()
        self.heads.set_time(time.time())
        for connection in list(self.connections):
            connection.check(now)

    def forget(self, connection: ServerConnection) -> None:
        """Called by a connection that is lost."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    def ended(self, exchange: Exchange) -> None:
        """Called by an exchange that waits for nothing any more."""
        self.running.discard(exchange)
        if not self.running:
            self._emptied.set()

    async def _until_empty(self, ones: set[ServerConnection] | set[Exchange]) -> None:
        while ones:
            self._emptied.clear()
            await self._emptied.wait()

    async def drain(self, timeout: float = 30.0) -> bool:
        """Stop accepting, let running requests end, then close; True when all of them did.

        Idle connections are closed at once, others after the answer they are on.
        What still runs after `timeout` seconds is cut off.
        """
        self.draining = True
        self.outbox.flush()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.hang_up_if_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._until_empty(self.connections), timeout)
        ended = not self.connections
        await self.close()
        return ended

    async def close(self) -> None:
        """Stop at once: cut every connection, and wait until the handlers have cleaned up."""
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self._until_empty(self.connections)
        await self._until_empty(self.running)
        for listener in self._listeners:
            with contextlib.suppress(RuntimeError):
                await listener.wait_closed()
        self._listeners.clear()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def start_server(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    sockets: Sequence[socket.socket] = (),
    limits: Limits = _DEFAULT_LIMITS,
    policy: SitePolicy | None = _DEFAULT_POLICY,
    observe: Observer | None = None,
    tls: ssl.SSLContext | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Server:
    """Serve `handler` on host and port, or on already bound `sockets` instead.

    `policy` keeps foreign web pages out (None: everybody may come), `observe` is
    called after each answer. Raises BadSetting when the address can't be had.
    """
    server = Server(handler, limits, policy, observe, clock)
    try:
        for sock in sockets or [bind(host, port)]:
            await server.listen(sock, tls)
    except BaseException:
        await server.close()
        raise
    server.tick()
    return server
