"""The client: what comes back, and what it says when nothing does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time

import pytest

from dolmen.errors import OutcomeUnknown, TooLarge, Unavailable
from dolmen.http import (
    Client,
    EncodedHeaders,
    Response,
    Streamed,
    Timeouts,
    start_server,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Far:
    """A server that answers each connection's requests from a script.

    A script is a list of byte strings, one for each request; None closes instead.
    """

    def __init__(self, *scripts) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.writers = []

    async def __aenter__(self) -> Far:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await self.server.wait_closed()

    async def serve(self, reader, writer) -> None:
        self.writers.append(writer)
        self.connections += 1
        script = self.scripts.pop(0) if self.scripts else []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for answer in script:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                if length and b"expect" not in head.lower():
                    head += await reader.readexactly(int(length))
                self.requests.append(head)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def client_of(serve, **options):
    """A client of a server made of a function of streams."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Client(*server.sockets[0].getsockname(), **options) as client:
        yield client
    server.close()
    await server.wait_closed()


@pytest.fixture
async def ask():
    """Ask a far server with these scripts; gives the outcomes, and the server."""

    async def ask(method, *scripts, times=1, **options):
        async with Far(*scripts) as far, Client(*far.address) as client:
            outcomes = []
            for _ in range(times):
                try:
                    answer = await client.request(method, "/x", **options)
                    outcomes.append((answer.status, await answer.body.read(1 << 20)))
                except (Unavailable, OutcomeUnknown) as error:
                    outcomes.append(error)
            return outcomes, far

    return ask


async def test_a_request_is_what_was_asked(kit) -> None:
    async with await start_server(kit.echo) as server, kit.client_of(server) as client:
        headers = [(b"X-A", b"b"), (b"X-C", b"d")]
        answer = await client.request("PUT", "/a%20b?c", headers, b"hello")
        told = json.loads(answer.body.whole)
        port = server.addresses[0][1]
        assert told == {
            "method": "PUT",
            "target": "/a%20b?c",
            "headers": [
                ["host", f"127.0.0.1:{port}"],
                ["x-a", "b"],
                ["x-c", "d"],
                ["content-length", "5"],
            ],
            "body": "hello",
        }
        answer = await client.request("GET", b"/", EncodedHeaders.of(headers))
        assert ["x-c", "d"] in json.loads(answer.body.whole)["headers"]
        answer = await client.request("POST", "/")
        assert ["content-length", "0"] in json.loads(answer.body.whole)["headers"]


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "x", []),
        ("GET", "/ x", []),
        ("GET", "/x\r\n", []),
        ("GET", "", []),
        ("GET X", "/", []),
        ("GET\r\n", "/", []),
        ("", "/", []),
        ("GET", "/", [(b"A", b"b\r\nC: d")]),
        ("GET", "/", [(b"A:", b"b")]),
        ("GET", "/", [(b"Host", b"b")]),
        ("GET", "/", [(b"Content-Length", b"5")]),
    ],
)
async def test_what_can_not_be_sent_is_refused(kit, method, target, headers) -> None:
    async with Client("127.0.0.1", 1) as client:
        with pytest.raises(ValueError, match=r"can't be|header"):
            await client.request(method, target, headers)


async def test_connections_are_kept_and_used_again(ask) -> None:
    outcomes, far = await ask("GET", [OK, OK, OK], times=3)
    assert outcomes == [(200, b"ok")] * 3
    assert far.connections == 1


async def test_interim_answers_are_skipped(ask) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    outcomes, _ = await ask("GET", [early + OK])
    assert outcomes == [(200, b"ok")]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_kept_connection_found_closed_is_replaced(kit, method) -> None:
    answer = OK if method == "GET" else OK[:-2]
    async with Far([answer, None], [answer]) as far, Client(*far.address) as client:
        for _ in range(2):
            assert (await client.request(method, "/")).status == 200
        assert far.connections == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_write_is_never_sent_twice(ask, method) -> None:
    outcomes, far = await ask(method, [OK, None], [OK], times=2)
    assert outcomes[0] == (200, b"ok")
    assert isinstance(outcomes[1], OutcomeUnknown)
    assert far.connections == 1
    assert len(far.requests) == 2


async def test_a_post_that_only_reads_is_told_so(ask) -> None:
    outcomes, far = await ask("POST", [OK, None], [OK], times=2, reads=True, body=b"names")
    assert outcomes == [(200, b"ok")] * 2
    assert far.connections == 2


async def test_a_read_is_not_sent_again_on_a_fresh_connection(ask) -> None:
    outcomes, far = await ask("GET", [None], [OK])
    assert isinstance(outcomes[0], Unavailable)
    assert far.connections == 1


async def test_a_read_that_got_some_bytes_is_not_sent_again() -> None:
    async with Far([OK, b"HTTP/1.1 200 OK\r\nContent-Len"]) as far, Client(*far.address) as client:
        await client.request("GET", "/")
        asking = asyncio.create_task(client.request("GET", "/"))
        while len(far.requests) < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        far.writers[0].close()
        with pytest.raises(Unavailable):
            await asking
        assert far.connections == 1


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_write_that_never_left_is_sent_on_another_connection(kit, how) -> None:
    async with Far([OK], [OK]) as far, Client(*far.address) as client:
        await client.request("POST", "/", body=b"1")
        [connection] = client.connections
        asking = asyncio.create_task(client.request("POST", "/", body=b"2"))
        await asyncio.sleep(0)
        assert connection.busy  # the request waits for the end of the turn, and the loop for more
        if how == "end":
            connection.eof_received()
        else:
            connection.transport.abort()
        assert (await asking).status == 200
        assert far.connections == len(far.requests) == 2


async def test_an_answer_nobody_asked_for_is_not_taken_for_that_of_the_next_request() -> None:
    spoken = []

    async def serve(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        # As proxies do to idle connections; written behind the back of the client's loop.
        spoken.append(writer.get_extra_info("socket").fileno())
        await reader.read()
        writer.close()

    async with client_of(serve) as client:
        assert (await client.request("GET", "/")).status == 200
        os.write(spoken[0], b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        answer = await client.request("GET", "/")
        assert (answer.status, len(spoken)) == (200, 2)


async def test_a_write_that_never_left_is_not_of_unknown_outcome() -> None:
    """A server that refuses a new connection, with a response even, was not asked anything."""

    async def refuse(_, writer) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with client_of(refuse) as client:
        with pytest.raises(Unavailable, match="closed a new connection"):
            await client.request("POST", "/x", body=b"a")


async def test_nobody_listening_is_unavailable() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with Client(*sock.getsockname()) as client:
            for method in ("GET", "POST"):
                with pytest.raises(Unavailable, match=r"can't connect to 127\.0\.0\.1"):
                    await client.request(method, "/", body=b"x" if method == "POST" else None)


BROKEN = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhel",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nX",
    b"HTTP/1.1 200 OK\r\nContent-Le",
    b"HTTP/1.1 200",
]


@pytest.mark.parametrize("data", BROKEN, ids=[repr(d)[-30:] for d in BROKEN])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_answer_cut_short_is_an_error_never_short_bytes(data, method) -> None:
    async def serve(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    async with client_of(serve) as client:

        async def ask() -> None:
            answer = await client.request(method, "/")
            await answer.body.read(1 << 20)

        with pytest.raises(Unavailable if method == "GET" else OutcomeUnknown):
            await ask()


MALFORMED = [
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\x00\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"hello\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000,
]


@pytest.mark.parametrize("data", MALFORMED, ids=[repr(d)[2:60] for d in MALFORMED])
async def test_a_malformed_answer_is_an_error(ask, data) -> None:
    [outcome], _ = await ask("GET", [data])
    assert isinstance(outcome, Unavailable)
    [outcome], _ = await ask("POST", [data])
    assert isinstance(outcome, OutcomeUnknown)


async def test_bytes_nobody_asked_for_end_the_connection(ask) -> None:
    outcomes, far = await ask("GET", [OK + OK, OK], [OK], times=2)
    assert outcomes == [(200, b"ok")] * 2
    assert far.connections == 2


async def test_connection_close_is_obeyed(ask) -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    outcomes, far = await ask("GET", [closing], [OK], times=2)
    assert outcomes == [(200, b"ok")] * 2
    assert far.connections == 2
    old = OK.replace(b"1.1", b"1.0")
    outcomes, far = await ask("GET", [old], [old], times=2)
    assert outcomes == [(200, b"ok")] * 2
    assert far.connections == 2


async def test_a_body_larger_than_allowed_is_refused(kit) -> None:
    async def handler(request):
        return Response(200, [], bytes(200_000))

    async with await start_server(handler) as server, kit.client_of(server) as client:
        answer = await client.request("GET", "/")
        with pytest.raises(TooLarge):
            await answer.body.read(100_000)
        answer.close()


async def test_an_answer_left_unread_closes_its_connection(kit) -> None:
    async def handler(request):
        return Response(200, [], bytes(1_000_000))

    async with await start_server(handler) as server, kit.client_of(server) as client:
        async with await client.request("GET", "/") as answer:
            assert answer.status == 200
        answer = await client.request("GET", "/")
        answer.close()
        answer = await client.request("GET", "/")
        del answer  # forgotten altogether
        answer = await client.request("GET", "/")
        assert len(await answer.body.read(1 << 20)) == 1_000_000
        answer.close()  # changes nothing: it was read
        await kit.settle()
        assert len(client.connections) == 1
        assert len(client._idle) == 1


async def test_a_cancelled_request_closes_its_connection(kit) -> None:
    begun = asyncio.Event()
    gone = asyncio.Event()

    async def handler(request):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    async with await start_server(handler) as server, kit.client_of(server) as client:
        asking = asyncio.create_task(client.request("GET", "/"))
        await begun.wait()
        asking.cancel()
        await asyncio.wait([asking])
        await gone.wait()
        assert asking.cancelled()


async def test_a_read_into_a_buffer_that_is_cancelled_closes_its_connection(kit) -> None:
    async def handler(request):
        async def pieces():
            yield b"x" * 100
            await asyncio.Event().wait()

        return Response(200, [], Streamed(pieces(), 1_000_000))

    async with await start_server(handler) as server, kit.client_of(server) as client:

        async def ask() -> None:
            answer = await client.request("GET", "/")
            reading.set()
            await answer.body.receive_into(memoryview(bytearray(1_000_000)))

        reading = asyncio.Event()
        asking = asyncio.create_task(ask())
        await reading.wait()
        await kit.settle()
        asking.cancel()
        await asyncio.wait([asking])
        for _ in range(100):
            await asyncio.sleep(0)
        assert not client.connections


# Uploads.


class Source:
    """A stream that counts what was taken of it."""

    def __init__(self, size: int, length=None, error=None) -> None:
        self.size, self.length, self.error = size, length, error
        self.given = self.closed = 0

    async def __aiter__(self):
        while self.given < self.size:
            self.given += 65536
            await asyncio.sleep(0)
            yield bytes(65536)
        if self.error:
            raise self.error

    async def aclose(self) -> None:
        self.closed += 1


async def test_an_early_answer_stops_the_upload(kit) -> None:
    async def handler(request):
        return Response(507, [], b"full")

    async with await start_server(handler) as server, kit.client_of(server) as client:
        for length in (None, 65536 * 100_000):
            source = Source(65536 * 100_000, length)
            answer = await client.request("POST", "/", body=source)
            assert (answer.status, answer.body.whole) == (507, b"full")
            assert source.given < 65536 * 10_000
            assert source.closed == 1


async def test_expect_continue_sends_nothing_to_who_refuses(kit) -> None:
    async def handler(request):
        return Response(507, [], b"full")

    async with await start_server(handler) as server, kit.client_of(server) as client:
        source = Source(65536 * 1000, 65536 * 1000)
        answer = await client.request("POST", "/", body=source, expect_continue=True)
        assert answer.status == 507
        assert source.given == 0
        assert source.closed == 1


async def test_the_body_follows_as_soon_as_the_server_asks_for_it(kit, monkeypatch) -> None:
    monkeypatch.setattr("dolmen.http.client_connection._CONTINUE_PATIENCE", 1000)

    async def handler(request):
        return Response(200, [], await request.body.read(5))

    async with await start_server(handler) as server, kit.client_of(server) as client:
        async with asyncio.timeout(10):
            answer = await client.request("POST", "/", body=b"hello", expect_continue=True)
        assert answer.body.whole == b"hello"


@pytest.mark.parametrize("early", [0, 0.005])
async def test_a_server_that_never_says_continue_gets_the_body_anyway(monkeypatch, early) -> None:
    """Also where a timer is a little early, as those of uvloop may be."""
    monkeypatch.setattr("dolmen.http.client_connection._CONTINUE_PATIENCE", 0.01)
    loop = asyncio.get_running_loop()
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda when, *a, **kw: call_at(when - early, *a, **kw))

    async def serve(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)
        writer.close()

    async with client_of(serve) as client, asyncio.timeout(10):
        answer = await client.request("POST", "/", body=b"hello", expect_continue=True)
        assert answer.body.whole == b"ok"


async def test_a_source_that_fails_cuts_the_request_and_is_told(kit) -> None:
    errors = []

    async def handler(request):
        try:
            await request.body.read(1 << 30)
        except BaseException as error:
            errors.append(error)
            raise

    async with await start_server(handler) as server, kit.client_of(server) as client:
        for length in (None, 65536 * 11):
            source = Source(65536 * 10, length, error=RuntimeError("no disk"))
            with pytest.raises(RuntimeError, match="no disk"):
                await client.request("POST", "/", body=source)
            assert source.closed == 1
        with pytest.raises(ValueError, match="announced"):
            await client.request("POST", "/", body=Source(65536 * 10, 65536 * 11))
        with pytest.raises(ValueError, match="announced"):
            await client.request("POST", "/", body=Source(65536 * 10, 65536 * 9 + 1))
        while len(errors) < 4:
            await asyncio.sleep(0)


async def test_a_server_that_goes_away_within_an_upload_leaves_it_unknown() -> None:
    async def serve(reader, writer) -> None:
        await reader.readexactly(100_000)
        writer.transport.abort()

    async with client_of(serve) as client:
        source = Source(1 << 40)
        with pytest.raises(OutcomeUnknown):
            await client.request("POST", "/", body=source)
        assert source.closed == 1


# The pool.


async def test_who_finds_no_connection_waits_in_line(kit) -> None:
    running = most = 0

    async def handler(request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return Response(200, [], b"x")

    async with (
        await start_server(handler) as server,
        kit.client_of(server, connections=3) as client,
    ):
        await asyncio.gather(*(client.request("GET", "/") for _ in range(50)))
        assert most == 3
        assert len(client.connections) == 3


async def test_waiting_in_line_has_an_end(kit) -> None:
    async def handler(request):
        await asyncio.Event().wait()

    async with await start_server(handler) as server:
        timeouts = Timeouts(pool=0.01)
        async with kit.client_of(server, connections=1, timeouts=timeouts) as client:
            first = asyncio.create_task(client.request("POST", "/", body=b"x"))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="stayed in use"):
                await client.request("POST", "/", body=b"x")
            first.cancel()
            await asyncio.wait([first])


async def test_a_cancelled_waiter_passes_its_turn_on(kit) -> None:
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Response(200, [], b"x")

    async with (
        await start_server(handler) as server,
        kit.client_of(server, connections=1) as client,
    ):
        tasks = [asyncio.create_task(client.request("GET", "/")) for _ in range(4)]
        for _ in range(50):
            await asyncio.sleep(0)
        tasks[1].cancel()
        gate.set()
        tasks[2].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[0].status == answers[3].status == 200
        assert isinstance(answers[1], asyncio.CancelledError)


async def test_a_lost_connection_makes_room_for_a_waiter(kit) -> None:
    async with Far([None], [OK]) as far, Client(*far.address, connections=1) as client:
        outcomes = await asyncio.gather(
            client.request("GET", "/"), client.request("GET", "/"), return_exceptions=True
        )
        assert isinstance(outcomes[0], Unavailable)
        assert outcomes[1].status == 200


@pytest.mark.parametrize("later", range(4))
async def test_a_request_cancelled_as_its_connection_is_made_leaves_none_behind(kit, later) -> None:
    async with await start_server(kit.echo) as server:
        client = kit.client_of(server, connections=1)
        asking = asyncio.create_task(client.request("GET", "/"))
        opening = None
        while opening is None:
            await asyncio.sleep(0)
            opening = next((t for t in asyncio.all_tasks() if "Client._open" in repr(t)), None)
        while not opening.done():
            await asyncio.sleep(0)
        await kit.settle(later)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        await client.close()
        await kit.settle(1000)
        assert not server.connections
        assert client._opening == 0


async def test_closing_twice_at_once_ends_both(kit) -> None:
    async with await start_server(kit.echo) as server:
        client = kit.client_of(server)
        await client.request("GET", "/")
        await asyncio.wait_for(asyncio.gather(client.close(), client.close()), 20)
        _, writer = await asyncio.open_connection(*server.addresses[0])
        while not server.connections:
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(server.close(), server.close()), 20)
        writer.close()


async def test_waiting_in_line_has_one_end_however_often_others_are_faster(kit) -> None:
    async def handler(request):
        await asyncio.Event().wait()

    timeouts = Timeouts(pool=0.1)
    async with await start_server(handler) as server:
        async with kit.client_of(server, connections=1, timeouts=timeouts) as client:
            first = asyncio.create_task(client.request("GET", "/"))
            await kit.settle()
            second = asyncio.create_task(client.request("GET", "/"))
            async with asyncio.timeout(20):
                while not second.done():
                    await asyncio.sleep(0.01)
                    client._pass_on(None)  # a place, which is taken again
            with pytest.raises(Unavailable, match="stayed in use"):
                await second
        assert isinstance(await asyncio.gather(first, return_exceptions=True), list)


async def test_a_long_head_that_comes_in_drops_is_looked_at_once(kit) -> None:
    transport, _ = kit.make_call_connection()
    connection = transport.get_protocol()
    asking = asyncio.ensure_future(
        connection.exchange(b"x", None, expect=False, head_only=False, reads=True)
    )
    await kit.settle()
    head = b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 8000 + b"Content-Length: 0\r\n\r\n"
    begun = time.process_time()
    for at in range(0, len(head), 16):
        await transport.feed_all(head[at : at + 16])
        connection.stop_sending()
    await kit.settle()
    assert (await asking).status == 200
    assert time.process_time() - begun < 2


async def test_a_closed_client_is_unavailable(kit) -> None:
    async def handler(request):
        await asyncio.Event().wait()

    async with await start_server(handler) as server:
        client = kit.client_of(server, connections=1)
        tasks = [asyncio.create_task(client.request("GET", "/")) for _ in range(2)]
        for _ in range(50):
            await asyncio.sleep(0)
        await client.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(o) for o in outcomes] == [Unavailable] * 2
        with pytest.raises(Unavailable, match="closed"):
            await client.request("GET", "/")


# Deadlines.


@pytest.fixture
async def slow(clock, kit):
    """A client of a server that says `said` and then nothing; time moves when told."""
    stack = contextlib.AsyncExitStack()

    async def slow(said: bytes):
        far = await stack.enter_async_context(Far([said]))
        client = Client(*far.address, timeouts=Timeouts(first_byte=5, idle=3), clock=clock)
        await stack.enter_async_context(client)

        async def later(seconds: float) -> None:
            clock.time += seconds
            client.sweep()
            await kit.settle(5)

        async def asked() -> None:
            while not far.requests:
                await asyncio.sleep(0)
            await kit.settle(20)
            client.sweep()

        return client, later, asked

    yield slow
    await stack.aclose()


@pytest.mark.parametrize(("method", "error"), [("GET", Unavailable), ("POST", OutcomeUnknown)])
async def test_no_answer_in_time(slow, method, error) -> None:
    client, later, asked = await slow(b"")
    asking = asyncio.create_task(client.request(method, "/"))
    await asked()
    await later(4)
    assert not asking.done()
    await later(2)
    with pytest.raises(error, match="did not answer within 5 s"):
        await asking


@pytest.mark.parametrize("size", [100, 1_000_000])
async def test_an_answer_that_stops(slow, size) -> None:
    client, later, asked = await slow(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nabc" % size)

    async def ask() -> None:
        answer = await client.request("GET", "/")
        await answer.body.read(1 << 20)

    asking = asyncio.create_task(ask())
    await asked()
    [connection] = client.connections
    while not connection.arrived and not connection.collecting:
        await asyncio.sleep(0)
    await later(2)
    assert not asking.done()
    await later(2)
    await later(2)
    with pytest.raises(Unavailable, match="sent nothing of its response for 3 s"):
        await asking


async def test_an_answer_before_the_end_of_the_upload_that_stops(slow, kit) -> None:
    client, later, asked = await slow(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc")

    async def drops():
        while True:
            await asyncio.sleep(0)
            yield b"drop"

    answer = await client.request("POST", "/", body=Streamed(drops()))
    await asked()
    reading = asyncio.create_task(answer.body.read(1 << 20))
    await kit.settle()
    await later(0)
    await later(2)
    assert not reading.done()
    await later(2)
    assert reading.done()
    with pytest.raises(OutcomeUnknown, match="sent nothing of its response for 3 s"):
        await reading


async def test_idle_connections_are_closed_before_the_server_does(kit, clock) -> None:
    async with await start_server(kit.echo) as server, kit.client_of(server, clock=clock) as client:
        await client.request("GET", "/")
        client.sweep()
        clock.time += 29
        client.sweep()
        [connection] = client.connections
        assert not connection.transport.is_closing()
        clock.time += 2
        client.sweep()
        await kit.settle()
        assert not client.connections


async def test_a_server_that_takes_nothing_of_the_request(clock, kit) -> None:
    writers = []

    async def serve(reader, writer) -> None:
        writers.append(writer)
        writer.transport.pause_reading()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    async with Client(*address, timeouts=Timeouts(idle=3), clock=clock) as client:
        asking = asyncio.create_task(client.request("POST", "/", body=Source(1 << 40)))
        left = -1
        while True:
            await kit.settle(1000)
            connections = list(client.connections)
            if connections and connections[0].write_paused:
                if connections[0].transport.get_write_buffer_size() == left:
                    break
                left = connections[0].transport.get_write_buffer_size()
        client.sweep()
        clock.time += 2
        client.sweep()
        assert not asking.done()
        clock.time += 2
        client.sweep()
        with pytest.raises(OutcomeUnknown, match="took nothing of the request for 3 s"):
            await asking
    server.close()
    for writer in writers:
        writer.transport.abort()
    await server.wait_closed()


@pytest.fixture
def full():
    """An address whose queue of connections is full, so that connecting never ends."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(sock.getsockname())
        yield sock.getsockname()


async def test_connecting_has_an_end(full) -> None:
    async with Client(*full, timeouts=Timeouts(connect=0.05)) as client:
        with pytest.raises(Unavailable, match=r"did not accept a connection within 0\.05 s"):
            await client.request("POST", "/", body=b"x")


async def test_connecting_can_be_cancelled_and_makes_room(full) -> None:
    async with Client(*full, connections=1) as client:
        first = asyncio.create_task(client.request("GET", "/"))
        second = asyncio.create_task(client.request("GET", "/"))
        for _ in range(10):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        for _ in range(10):
            await asyncio.sleep(0)
        assert client._opening == 1
        second.cancel()
        await asyncio.wait([second])
        assert client._opening == 0
