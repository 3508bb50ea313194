"""Fakes for the HTTP tests: a transport without a socket, a server without a port."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from dolmen.http import Client, Limits, Request, Response, Server, SitePolicy, Timeouts
from dolmen.http.client_connection import ClientConnection
from dolmen.http.connection import WriteCoalescer
from dolmen.http.server_connection import ServerConnection


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Any]:
    return {"uvloop": uvloop.new_event_loop}


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `close` and `abort` tell the protocol at once, as a lost socket."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = b""
        self.server: Server | None = None
        self.closing = self.aborted = self.eof = self.paused = False
        self.buffered = 0
        self.hangs = False
        protocol.connection_made(self)

    @property
    def written(self) -> bytes:
        """What was sent until now, with what waits for the end of the turn."""
        if self.server is not None:
            self.server.coalescer.flush()
        return self.sent

    @written.setter
    def written(self, data: bytes) -> None:
        self.sent = data

    def write(self, data: Any) -> None:
        if not self.closing:
            self.sent += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if self.hangs and not self.aborted:
                return
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        if self.closing and self.hangs and not self.aborted:
            self.closing = False
        self.aborted = True
        self.close()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50000) if name == "peername" else default

    def feed(self, data: bytes) -> bytes:
        """Let bytes arrive as a socket would; returns those that could not, being paused."""
        while data and not self.paused and not self.closing:
            protocol = self.protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                room = memoryview(protocol.get_buffer(-1))
                count = min(len(room), len(data))
                room[:count] = data[:count]
                protocol.buffer_updated(count)
                data = data[count:]
            else:
                protocol.data_received(data)
                data = b""
        return data

    async def feed_all(self, data: bytes) -> None:
        """Let bytes arrive, as fast as they are taken."""
        idle = 0
        while data and not self.closing and idle < 100:
            left = self.feed(data)
            idle = idle + 1 if left == data else 0
            data = left
            await asyncio.sleep(0)

    @property
    def ended(self) -> bool:
        """Whether the other side has been told that no more comes."""
        return self.closing or self.eof


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


async def settle(rounds: int = 10) -> None:
    """Let everything that can go on without outside help go on."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def make_connection(
    handler: Any,
    *,
    limits: Limits | None = None,
    policy: SitePolicy | None = None,
    loopback: bool = False,
    clock: Callable[[], float] | None = None,
    observe: Any = None,
) -> FakeTransport:
    """A server connection on a fake transport; the server is `transport.server`."""
    server = Server(handler, limits or Limits(), policy, observe, clock or Clock())
    transport = FakeTransport(ServerConnection(server, loopback=loopback))
    transport.server = server
    return transport


def make_call_connection() -> tuple[FakeTransport, Any]:
    """A client connection on a fake transport, and the pool it reports to."""
    pool = SimpleNamespace(
        loop=asyncio.get_running_loop(), name="far", timeouts=Timeouts(), lines={},
        released=[], forgotten=[], coalescer=WriteCoalescer(asyncio.get_running_loop(), most=8),
    )  # fmt: skip
    pool.release = pool.released.append
    pool.forget = pool.forgotten.append
    return FakeTransport(ClientConnection(pool)), pool


class Answer(SimpleNamespace):
    """A response as the tests look at it: status, headers (a dict) and body."""

    @property
    def problem(self) -> Any:
        assert self.headers[b"content-type"] == b"application/problem+json"
        told = json.loads(self.body)
        assert told["status"] == self.status
        return told


def parse_answers(data: bytes, *, head: bool = False, heads: Sequence[bool] = ()) -> list[Answer]:
    """Take written responses apart, strictly; `head`, or `heads` each, are those to HEAD.

    With `heads` one may be cut off: it has the body b"cut off" and is the last.
    """
    answers: list[Answer] = []
    while data:
        top, mark, data = data.partition(b"\r\n\r\n")
        assert mark
        line, *lines = top.split(b"\r\n")
        assert line.startswith(b"HTTP/1.1 ")
        headers = {}
        for item in lines:
            name, _, value = item.partition(b": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        status = int(line[9:12])
        if head or [*heads[len(answers) :], False][0] or status in (100, 204, 304):
            body = b""
        elif b"content-length" in headers:
            size = int(headers[b"content-length"])
            body, data = data[:size], data[size:]
            assert len(body) == size
        elif headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while True:
                size_line, mark, data = data.partition(b"\r\n")
                if not mark and heads:
                    body = b"cut off"
                    break
                size = int(size_line, 16)
                body += data[:size]
                assert data[size : size + 2] == b"\r\n"
                data = data[size + 2 :]
                if not size:
                    break
        else:
            assert headers[b"connection"] == b"close"
            body, data = data, b""
        answers.append(Answer(status=status, headers=headers, body=body))
    return answers


@pytest.fixture
def connect() -> Any:
    return make_connection


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers above, for tests in other files."""
    return SimpleNamespace(
        make_connection=make_connection,
        make_call_connection=make_call_connection,
        parse_answers=parse_answers,
        settle=settle,
        Clock=Clock,
        echo=echo,
        exchange=exchange,
        client_of=client_of,
    )


async def echo(request: Request) -> Response:
    """Answer with what was asked, as JSON; reads the body."""
    body = await request.body.read(1 << 30)
    told = {
        "method": request.method,
        "target": request.target.decode("latin-1"),
        "headers": [[n.decode(), v.decode("latin-1")] for n, v in request.headers.items()],
        "body": body.decode("latin-1"),
    }
    return Response(200, [(b"Content-Type", b"application/json")], json.dumps(told).encode())


async def exchange(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes over a real socket and read until the server closes."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def client_of(server: Server, **options: Any) -> Client:
    address = server.addresses[0]
    assert address is not None
    return Client(*address, **options)
