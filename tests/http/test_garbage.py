"""What a request had in hand is let go of with it, not when the garbage collector comes round."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from dolmen.errors import DolmenError, NotFound
from dolmen.http import BodyTooLarge, Client, HTTPError, Response, Timeouts
from dolmen.http.connection import again


class Held(bytearray):
    """A buffer whose end can be seen."""

    __hash__ = object.__hash__


@pytest.fixture
def held():
    """Makes buffers; gives those that are still held."""
    made: weakref.WeakSet[Held] = weakref.WeakSet()

    def make(size: int = 1000) -> Held:
        made.add(one := Held(size))
        return one

    make.left = made
    gc.collect()
    gc.disable()
    yield make
    gc.enable()


FRAMINGS = {
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n500\r\nabc",
    "malformed": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "sized": b"Content-Length: 100000\r\n\r\nabc",
}


@pytest.mark.parametrize("how", ["into", "iterated", "waits"])
@pytest.mark.parametrize("end", ["too slow", "gone"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_of_an_upload_that_broke_off(kit, clock, held, how, end, framing) -> None:
    async def handler(request):
        room = held()
        if how == "into":
            await request.body.receive_into(memoryview(room))
        elif how == "iterated":
            async for piece in request.body:
                room[: len(piece)] = piece
        else:
            await asyncio.Event().wait()
        return Response()

    transport = kit.make_connection(handler, clock=clock)
    transport.feed(b"POST / HTTP/1.1\r\nHost: a\r\n" + FRAMINGS[framing])
    await kit.settle()
    if end == "too slow":
        for _ in range(40):
            clock.time += 1
            transport.server.sweep()
            await kit.settle(2)
    if end == "gone" or how == "waits":
        transport.close()
    await kit.settle(20)
    assert not held.left


@pytest.mark.parametrize("first", [0, 1])
async def test_of_a_request_that_was_answered(kit, held, first) -> None:
    """The last thing a handler waited for, a piece of a file perhaps."""

    async def handler(request):
        for _ in range(first):
            await asyncio.sleep(0)
        read = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(read.set_result, held())
        await read
        return Response()

    transport = kit.make_connection(handler)
    transport.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await kit.settle()
    assert transport.written
    assert not transport.closing
    assert not held.left


async def refused(reader, writer) -> None:
    writer.close()


def answering(data: bytes):
    async def serve(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        if data:
            writer.close()
        else:
            await reader.read()
            writer.close()

    return serve


SERVERS = {
    "refused": refused,
    "malformed": answering(b"HTTP/1.1 zz\r\n\r\n"),
    "short": answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc"),
    "silent": answering(b""),
    "away": None,
}


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("server", SERVERS)
async def test_of_a_request_that_failed(held, clock, server, method) -> None:
    async def ask(client: Client) -> None:
        room = held(100_000)
        response = await client.request(method, "/", body=memoryview(room))
        await response.body.receive_into(memoryview(room))

    serve = SERVERS[server]
    far = await asyncio.start_server(serve or refused, "127.0.0.1", 0)
    address = far.sockets[0].getsockname()
    if serve is None:
        far.close()
        await far.wait_closed()
    async with Client(*address, timeouts=Timeouts(first_byte=5), clock=clock) as client:
        asking = asyncio.create_task(ask(client))
        while not asking.done():
            await asyncio.sleep(0.01)
            if server == "silent":
                client.sweep()
                clock.time += 1
        assert isinstance(asking.exception(), DolmenError)
        del asking
        assert not held.left
    far.close()


def test_an_error_that_is_kept_is_raised_as_it_was() -> None:
    for error in (HTTPError(408, "slow", [(b"a", b"b")]), BodyTooLarge(5), NotFound("x", stamp=3)):
        copy = again(error)
        assert type(copy) is type(error)
        assert (str(copy), vars(copy)) == (str(error), vars(error))
        assert copy.__traceback__ is None
