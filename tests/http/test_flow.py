"""Over real sockets: large bodies byte for byte, and neither side outruns the other."""

from __future__ import annotations

import asyncio
import random

import pytest

from dolmen.errors import BadContent
from dolmen.http import HTTPError, Limits, Response, Streamed, start_server

MIB = 1 << 20
DATA = random.Random(7).randbytes(5 * MIB + 12_345)


async def pieces_of(data: bytes, size: int):
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read_all(body, how: str) -> bytes:
    if how == "read":
        return await body.read(1 << 30)
    if how == "iterate":
        return b"".join([piece async for piece in body])
    got = bytearray()
    sizes = {"into": [300_000], "mixed": [1, 70_000, 333, 1_000_003]}[how]
    turn = 0
    while True:
        if how == "mixed" and turn % 5 == 4:
            piece = await anext(aiter(body), b"")
            got += piece
        buffer = memoryview(bytearray(sizes[turn % len(sizes)]))
        turn += 1
        count = await body.receive_into(buffer)
        got += buffer[:count]
        if count < len(buffer):
            assert await body.receive_into(buffer) == 0
            return bytes(got)


HOWS = ["read", "iterate", "into", "mixed"]


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "chunked"])
@pytest.mark.parametrize("expect", [False, True], ids=["plain", "expect"])
@pytest.mark.parametrize("how", HOWS)
async def test_large_uploads(kit, how, sized, expect) -> None:
    async def handler(request):
        assert request.body.length == (len(DATA) if sized else None)
        assert request.body.whole is None
        same = await read_all(request.body, how) == DATA
        return Response(200, [], b"same" if same else b"different")

    async with await start_server(handler) as server, kit.client_of(server) as client:
        for _ in range(2):
            body = Streamed(pieces_of(DATA, 100_000), len(DATA) if sized else None)
            answer = await client.request("POST", "/", body=body, expect_continue=expect)
            assert answer.body.whole == b"same"
        assert len(server.connections) == 1


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "chunked"])
@pytest.mark.parametrize("how", HOWS)
async def test_large_downloads(kit, how, sized) -> None:
    async def handler(request):
        length = len(DATA) if sized else None
        return Response(200, [], Streamed(pieces_of(DATA, 77_777), length))

    async with await start_server(handler) as server, kit.client_of(server) as client:
        for _ in range(2):
            answer = await client.request("GET", "/")
            assert answer.body.length == (len(DATA) if sized else None)
            assert await read_all(answer.body, how) == DATA
        assert len(server.connections) == 1


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 262144, 262145])
async def test_sizes_around_the_boundaries(kit, size) -> None:
    data = DATA[:size]

    async def handler(request):
        got = await read_all(request.body, "into")
        return Response(200, [], Streamed(pieces_of(got, 65536), len(got)))

    async with await start_server(handler) as server, kit.client_of(server) as client:
        for body in (data, Streamed(pieces_of(data, 1000)), Streamed(pieces_of(data, 65536), size)):
            answer = await client.request("PUT", "/", body=body)
            assert await read_all(answer.body, "into") == data
        assert len(server.connections) == 1


async def test_pipelined_requests_around_large_bodies(kit) -> None:
    async def handler(request):
        got = await read_all(request.body, "into")
        return Response(200, [], b"%d" % len(got))

    upload = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with await start_server(handler) as server:
        got = await kit.exchange(server.addresses[0], get + upload + upload + get + last)
    lengths = [a.body for a in kit.parse_answers(got)]
    assert lengths == [b"0", b"%d" % len(DATA), b"%d" % len(DATA), b"0", b"0"]


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "chunked"])
async def test_a_reader_that_is_behind_stops_the_sender(kit, sized) -> None:
    """The sender gets stuck once the sockets are full: the receiver holds little itself."""
    sent = 0
    gate = asyncio.Event()
    stuck = asyncio.Event()

    async def pieces():
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield bytes(65536)

    async def handler(request):
        await gate.wait()
        total = 0
        async for piece in request.body:
            total += len(piece)
        return Response(200, [], b"%d" % total)

    async with await start_server(handler) as server, kit.client_of(server) as client:
        body = Streamed(pieces(), 65_536_000 if sized else None)
        asking = asyncio.create_task(client.request("POST", "/", body=body))

        async def watch() -> None:
            before = -1
            while sent != before or not sent:
                before = sent
                for _ in range(2000):
                    await asyncio.sleep(0)
            stuck.set()

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(stuck.wait(), 20)
        await watching
        assert sent < 40_000_000
        [connection] = server.connections
        assert connection.unread() < 600_000
        gate.set()
        assert (await asking).body.whole == b"65536000"


async def test_a_client_that_is_behind_stops_the_handler(kit) -> None:
    made = 0

    async def pieces():
        nonlocal made
        for _ in range(1000):
            made += 65536
            yield bytes(65536)

    async def handler(request):
        return Response(200, [], Streamed(pieces(), 65_536_000))

    async with await start_server(handler) as server, kit.client_of(server) as client:
        answer = await client.request("GET", "/")
        before = -1
        while made != before:
            before = made
            for _ in range(2000):
                await asyncio.sleep(0)
        assert made < 40_000_000
        total = 0
        async for piece in answer.body:
            total += len(piece)
        assert total == 65_536_000


async def test_a_read_into_a_buffer_that_is_cancelled_leaves_the_buffer_alone(kit) -> None:
    async def handler(request):
        buffer = memoryview(bytearray(MIB))
        reading = asyncio.create_task(request.body.receive_into(buffer))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        held = bytes(buffer)
        go_on.set()
        for _ in range(200):
            await asyncio.sleep(0)
        assert bytes(buffer) == held
        with pytest.raises(BadContent):
            await request.body.receive_into(buffer)
        return Response(400, [], b"gave up")

    go_on = asyncio.Event()
    async with await start_server(handler) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc")
        await go_on.wait()
        writer.write(b"x" * 500_000)
        got = await reader.read()
        writer.close()
    [answer] = kit.parse_answers(got)
    assert answer.body == b"gave up"


@pytest.mark.parametrize("length", [60_000, 1_000_000], ids=["kept", "closed"])
@pytest.mark.parametrize("how", ["read", "into"])
async def test_a_reader_that_outlives_the_answer_is_told(kit, length, how) -> None:
    readers = []

    async def handler(request):
        reading = (
            request.body.read(1 << 20)
            if how == "read"
            else request.body.receive_into(memoryview(bytearray(MIB)))
        )
        readers.append(asyncio.create_task(reading))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return Response(200, [], b"done")

    limits = Limits(whole_body=0)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length
    last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with await start_server(handler, limits=limits) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(head + b"abc")
        await reader.readuntil(b"done")
        with pytest.raises(HTTPError, match="already been answered"):
            await asyncio.wait_for(readers[0], 20)
        if length < 65536:  # the rest is thrown away, and the next request served
            writer.write(bytes(length - 3) + last)
            await reader.readuntil(b"done")
        writer.close()


async def test_a_refused_upload_sees_its_answer_not_a_reset(kit) -> None:
    async def handler(request):
        return Response(413, [], b"too much")

    async with await start_server(handler) as server:
        for _ in range(20):
            data = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n"
            got = await kit.exchange(server.addresses[0], data + bytes(2_000_000))
            [answer] = kit.parse_answers(got)
            assert answer.body == b"too much"


async def test_a_last_response_is_not_lost_by_what_its_client_sent_beyond_the_request(kit) -> None:
    last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with await start_server(kit.echo) as server:
        for _ in range(20):
            got = await kit.exchange(server.addresses[0], last + bytes(2_000_000))
            [answer] = kit.parse_answers(got)
            assert answer.status == 200


async def test_a_slow_client_over_a_real_socket_gets_everything(kit) -> None:
    async def handler(request):
        return Response(200, [], DATA)

    async with await start_server(handler) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0], limit=1000)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(DATA) in head
        assert await reader.readexactly(len(DATA)) == DATA
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(DATA)) == DATA
        writer.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "stream"])
async def test_little_of_a_large_response_is_queued_for_a_slow_client(kit, streamed) -> None:
    """The handler gives 5 MiB in one piece; they wait in its hands, not in the socket's queue."""

    def handler(request):
        body = Streamed(pieces_of(DATA, len(DATA)), len(DATA)) if streamed else DATA
        return Response(200, [], body)

    transport = kit.make_connection(handler)
    transport.write = lambda data: queued.append(len(data)) or transport.protocol.pause_writing()
    queued: list[int] = []
    transport.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    for _ in range(3):
        await kit.settle()
        transport.protocol.resume_writing()
    await kit.settle()
    assert 3 <= len(queued) <= 5
    assert max(queued) <= 256 * 1024
    transport.close()
    await kit.settle()


async def test_a_buffer_that_was_filled_is_let_go(kit) -> None:
    room = bytearray(MIB)

    async def handler(request):
        with memoryview(room) as view:
            await request.body.receive_into(view)
        room.append(0)  # BufferError while anybody has a view of it
        return Response(204)

    async with await start_server(handler) as server, kit.client_of(server) as client:
        body = Streamed(pieces_of(bytes(MIB), MIB), MIB)
        answer = await client.request("POST", "/", body=body, expect_continue=True)
        assert answer.status == 204
