"""A server on one or more listening sockets, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dolmen.errors import BadSetting
from dolmen.http.connection import WriteCoalescer
from dolmen.http.head import Lines
from dolmen.http.limits import Limits
from dolmen.http.messages import Address, Handler, Observer
from dolmen.http.origins import SitePolicy, is_loopback
from dolmen.http.server_connection import ServerConnection

TICK = 1.0
_TOGETHER = 64  # responses that may wait for each other; about a millisecond's work
_DEFAULT_LIMITS = Limits()
_DEFAULT_POLICY = SitePolicy()


@dataclass(eq=False)
class Server:
    """Connections, their deadlines and their end. Made by `start_server`.

    One timer a second looks after all connections: `sweep()`, which tests call
    themselves after moving an injected `clock`.
    """

    handler: Handler
    limits: Limits = _DEFAULT_LIMITS
    policy: SitePolicy | None = None
    observe: Observer | None = None
    clock: Callable[[], float] = time.monotonic
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    addresses: list[Address] = field(default_factory=list)
    connections: set[ServerConnection] = field(default_factory=set)
    """Those that are open, or whose handler cleans up."""
    lines: Lines = field(default_factory=dict)
    starts: dict[int, bytes] = field(default_factory=dict)
    """First lines of responses by their status, with the date."""
    draining: bool = False
    _emptied: asyncio.Event = field(default_factory=asyncio.Event)
    _listeners: list[asyncio.AbstractServer] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.coalescer = WriteCoalescer(self.loop, most=_TOGETHER)

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve connections to a bound socket; it is closed with the server."""
        address = sock.getsockname()
        loopback = isinstance(address, tuple) and is_loopback(address[0])
        listener = await self.loop.create_server(
            lambda: ServerConnection(self, loopback=loopback),
            sock=sock, ssl=tls, backlog=2048,
        )  # fmt: skip
        self._listeners.append(listener)
        self.addresses.append(address[:2] if isinstance(address, tuple) else None)

    def tick(self) -> None:
        """Sweep now and once a second from now on, until closed."""
        self._timer = self.loop.call_later(TICK, self.tick)
        self.sweep()

    def sweep(self) -> None:
        """Take the time, and close the connections whose deadlines are over."""
        now = self.clock()
        self.starts.clear()
        for connection in list(self.connections):
            connection.check(now)

    async def drain(self, timeout: float = 30.0) -> bool:
        """Stop accepting, let running requests end, then close; True when all of them did.

        Idle connections are closed at once, others after the response they are on.
        What still runs after `timeout` seconds is cut off.
        """
        self._stop_accepting()
        for connection in list(self.connections):
            connection.hang_up_if_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._until_empty(), timeout)
        ended = not self.connections
        await self.close()
        return ended

    async def close(self) -> None:
        """Stop at once: cut every connection, and wait until the handlers have cleaned up."""
        self._stop_accepting()
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self.connections):
            connection.transport.abort()
        await self._until_empty()
        for listener in self._listeners:
            with contextlib.suppress(RuntimeError):
                await listener.wait_closed()
        self._listeners.clear()

    def forget(self, connection: ServerConnection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    def _stop_accepting(self) -> None:
        self.draining = True
        for listener in self._listeners:
            listener.close()

    async def _until_empty(self) -> None:
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

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
    called after each response. Raises BadSetting when the address can't be had.
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


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind a TCP socket, not listening yet; port 0 lets the system choose one.

    A name that stands for several addresses is bound to the first, IPv4 before
    IPv6. Raises BadSetting when the address is in use, unknown, or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise BadSetting(f"can't listen on {host}: {error.strerror}") from None
    family, kind, proto, _, address = min(found, key=lambda info: info[0])
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError as error:
        sock.close()
        what = f"can't listen on port {port} of {host}: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} on {host} is in use by another program; "
            what += "stop it or choose another with --listen"
        raise BadSetting(what) from None
    return sock
