"""The numbers that bound what a peer may cost: `Limits` for clients, `Timeouts` for servers.

Sizes in bytes, times in seconds. A timer looks at all connections of a server once a second
(of a client four times a second); each deadline may be overrun by two of its ticks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a client may send to a server, and how long it may take."""

    request_line: int = 8 * 1024
    """Method, target and version with their two spaces; beyond it 414."""
    header_count: int = 100
    header_size: int = 32 * 1024
    """All header lines together; beyond it, or beyond `header_count`, 431."""
    header_deadline: float = 10.0
    """From the first byte of a request (or the connection) to its empty line; then 408."""
    keep_alive: float = 75.0
    """How long a connection may wait for its next request; then it is closed."""
    body_size: int = 1 << 50
    """Largest request body; 413. Handlers have tighter limits of their own."""
    whole_body: int = 64 * 1024
    """A body announced as no larger than this is collected before the handler runs."""
    body_idle: float = 30.0
    """Longest silence while a handler waits for the body (408), or the client takes nothing
    of a response (the connection is cut)."""
    body_rate: int = 1024
    """Least bytes a second, over each minute of waiting for a body; less is 408."""
    connections: int = 10_000
    """Connections at once; one more is answered 503 and closed, after `linger` where few are."""
    linger: float = 2.0
    """How long what a refused client still sends is thrown away, so that it sees the response."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits for a server."""

    connect: float = 5.0
    """For the connection, TLS included."""
    pool: float = 30.0
    """For one of the pool's connections, when all are in use."""
    first_byte: float = 60.0
    """From the request's last byte to the response's head."""
    idle: float = 30.0
    """For the next bytes of a body, either way."""
    keep_alive: float = 30.0
    """How long an unused connection is kept; shorter than the server keeps it."""
