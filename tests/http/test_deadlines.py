"""Slow clients are told so, or cut off; the clock is ours."""

from __future__ import annotations

import asyncio

import pytest

from dolmen.http import HTTPError, Response, Streamed

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SMALL = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
LARGE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def start(kit, clock):
    def start(handler=kit.echo):
        transport = kit.make_connection(handler, clock=clock)

        async def later(seconds: float, *, step: float = 1.0) -> None:
            transport.server.sweep()  # a wait begins with the sweep that first sees it
            await kit.settle(5)
            end = clock.time + seconds
            while clock.time < end:
                clock.time = min(end, clock.time + step)
                transport.server.sweep()
                await kit.settle(5)

        transport.later = later
        return transport

    return start


async def test_a_silent_new_connection_is_closed(start) -> None:
    transport = start()
    await transport.later(10)
    assert not transport.closing
    await transport.later(1)
    assert transport.closing
    assert not transport.written


async def test_a_head_that_drips_in_is_408(kit, start) -> None:
    transport = start()
    transport.feed(GET)
    await transport.later(5)
    for n in range(10):
        transport.feed(GET[n : n + 1])
        await transport.later(1)
    assert not transport.ended
    await transport.later(1)
    _, answer = kit.parse_answers(transport.written)
    assert answer.status == 408
    assert transport.ended


async def test_a_method_that_drips_in_is_408_after_the_same_time(kit, start) -> None:
    transport = start()
    transport.feed(GET)
    await transport.later(5)
    for _ in range(10):
        transport.feed(b"X")
        await transport.later(1)
    assert not transport.ended
    await transport.later(1)
    _, answer = kit.parse_answers(transport.written)
    assert answer.status == 408


async def test_an_idle_connection_is_closed_after_keep_alive(start) -> None:
    transport = start()
    transport.feed(GET)
    await transport.later(75)
    assert not transport.closing
    await transport.later(1)
    assert transport.closing


@pytest.mark.parametrize("begin", [SMALL, LARGE, CHUNKED], ids=["small", "large", "chunked"])
async def test_a_body_that_stops_is_408(kit, start, begin) -> None:
    transport = start()
    transport.feed(begin)
    await transport.later(20)
    transport.feed(b"5")
    await transport.later(30)
    assert not transport.written
    await transport.later(2)
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 408
    assert transport.ended


@pytest.mark.parametrize("begin", [SMALL, LARGE], ids=["small", "large"])
async def test_a_body_that_drips_in_is_408(kit, start, begin) -> None:
    transport = start()
    transport.feed(begin)
    seconds = 0
    while not transport.written:
        transport.feed(b"x")
        await transport.later(1)
        seconds += 1
    assert 60 <= seconds <= 62
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 408


async def test_a_body_at_the_least_rate_is_waited_for(start) -> None:
    transport = start()
    transport.feed(LARGE)
    for _ in range(300):
        await transport.feed_all(b"x" * 1100)
        await transport.later(1)
    assert not transport.written
    assert not transport.ended


async def test_a_body_filled_into_a_buffer_has_deadlines_too(kit, start) -> None:
    async def handler(request):
        with pytest.raises(HTTPError, match="too long"):
            await request.body.receive_into(memoryview(bytearray(1_000_000)))
        raise HTTPError(408, "x.")

    transport = start(handler)
    await transport.feed_all(LARGE + b"x" * 10)
    await transport.later(33)
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 408


async def test_a_handler_may_take_its_time(kit, start) -> None:
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Response(200, [], await request.body.read(1 << 20))

    transport = start(handler)
    transport.feed(LARGE)
    await transport.later(1000, step=10)
    assert not transport.closing
    gate.set()
    await kit.settle()
    await transport.feed_all(b"x" * 1_000_000)
    await kit.settle()
    [answer] = kit.parse_answers(transport.written)
    assert len(answer.body) == 1_000_000


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(start) -> None:
    closed = []

    async def pieces():
        try:
            while True:
                await asyncio.sleep(0)
                yield b"x" * 1000
        finally:
            closed.append(True)

    async def handler(request):
        return Response(200, [], Streamed(pieces()))

    transport = start(handler)
    transport.feed(GET)
    transport.protocol.pause_writing()
    transport.buffered = 1000
    await transport.later(30)
    transport.buffered = 900  # it took something
    await transport.later(30)
    assert not transport.aborted
    await transport.later(3)
    assert transport.aborted
    assert closed == [True]


async def test_a_client_that_takes_nothing_of_the_last_answer_is_cut_off(start) -> None:
    transport = start()
    transport.hangs = True
    transport.feed(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert transport.closing
    transport.buffered = 10
    await transport.later(32)
    assert transport.aborted


async def test_a_slow_client_gets_all_of_the_last_answer_though_it_sent_too_much(start) -> None:
    transport = start()
    transport.feed(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"more")
    assert transport.eof
    for left in range(10, 0, -1):
        transport.buffered = left
        await transport.later(5)
        assert not transport.aborted
    transport.buffered = 0
    await transport.later(4)
    assert transport.aborted


async def test_a_rest_of_a_body_that_never_comes_ends_the_connection(kit, start) -> None:
    async def handler(request):
        return Response(200, [], await anext(aiter(request.body)))

    transport = start(handler)
    transport.feed(LARGE.replace(b"1000000", b"70000") + b"x" * 10_000)
    await kit.settle()
    assert not transport.ended
    await transport.later(33)
    assert transport.closing
