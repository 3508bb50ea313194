"""One transfer on a blocking socket: the least a client can do, so that the server is measured."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from bench.figures import NotMeasured

_READ = 1 << 20
_PATIENCE = 120
"""Seconds without a byte after which a transfer has failed."""


def send(port: int, path: str, pieces: Iterable[bytes | memoryview], size: int) -> dict[str, Any]:
    """POST `size` bytes; returns what the server answered."""
    with _connected(port) as sock:
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n" % (path.encode(), port, size)
        )
        for piece in pieces:
            sock.sendall(piece)
        status, _, length, rest = _head(sock)
        while len(rest) < length:
            rest += _some(sock)
        if status not in (200, 201):
            raise NotMeasured(f"POST {path} was answered {status}: {rest[:300].decode()}")
        said: dict[str, Any] = json.loads(rest)
        return said


def receive(port: int, path: str, buffer: memoryview) -> None:
    """GET a body that fills the buffer."""
    for _ in received(port, path, len(buffer), buffer=buffer):
        pass


def received(
    port: int, path: str, size: int, *, buffer: memoryview | None = None
) -> Generator[memoryview, None, None]:
    """GET a body of `size` bytes, piece by piece; with a buffer of that size, into it."""
    into = buffer if buffer is not None else memoryview(bytearray(_READ))
    with _connected(port) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (path.encode(), port))
        status, head, length, rest = _head(sock)
        if status != 200 or length != size:
            raise NotMeasured(f"GET {path} was answered {status} with {length} bytes: {head!r}")
        got = len(rest)
        into[:got] = rest
        yield into[:got]
        while got < size:
            start = got if buffer is not None else 0
            count = sock.recv_into(into[start : start + _READ])
            if not count:
                raise NotMeasured(f"GET {path} broke off after {got} of {size} bytes")
            yield into[start : start + count]
            got += count


@contextlib.contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def _head(sock: socket.socket) -> tuple[int, bytes, int, bytes]:
    """Status, header lines, Content-Length, and the first bytes of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), head, int(fields.get(b"content-length", b"-1")), rest


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65_536)
    if not data:
        raise NotMeasured("the server closed the connection")
    return data
