"""Starting, draining and closing a server."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from dolmen.errors import BadSetting
from dolmen.http import Response, Streamed, bind, start_server
from dolmen.http.server_connection import ServerConnection

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def read_answer(reader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(size)


async def test_it_serves_a_bound_socket(kit) -> None:
    sock = bind("127.0.0.1", 0)
    async with await start_server(kit.echo, sockets=[sock]) as server:
        assert server.addresses == [sock.getsockname()]
        got = await kit.exchange(sock.getsockname(), GET.replace(b"1.1", b"1.0"))
        assert kit.parse_answers(got)[0].status == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*server.addresses[0])


async def test_it_serves_several_sockets_and_ipv6(kit) -> None:
    sockets = [bind("127.0.0.1", 0), bind("::1", 0)]
    async with await start_server(kit.echo, sockets=sockets) as server:
        for address in server.addresses:
            got = await kit.exchange(address, GET.replace(b"1.1", b"1.0"))
            assert kit.parse_answers(got)[0].status == 200


async def test_an_occupied_port_is_a_setting_to_mend(kit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(BadSetting, match=f"port {port} on 127.0.0.1 is in use.*--listen"):
            await start_server(kit.echo, port=port)


async def test_an_impossible_address_is_a_setting_to_mend(kit) -> None:
    with pytest.raises(BadSetting, match="can't listen"):
        await start_server(kit.echo, host="192.0.2.1")
    with pytest.raises(BadSetting, match="can't listen"):
        await start_server(kit.echo, host="no such host")


async def test_the_loopback_rule_follows_the_listener(kit) -> None:
    async with await start_server(kit.echo) as server:
        got = await kit.exchange(server.addresses[0], b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n")
        assert kit.parse_answers(got)[0].status == 421


async def test_drain_closes_idle_connections_and_lets_requests_end(kit) -> None:
    gate = asyncio.Event()
    begun = asyncio.Event()

    async def handler(request):
        if request.target == b"/slow":
            begun.set()
            await gate.wait()
        return Response(200, [], b"done")

    server = await start_server(handler)
    idle_reader, idle = await asyncio.open_connection(*server.addresses[0])
    idle.write(GET)
    await read_answer(idle_reader)
    busy_reader, busy = await asyncio.open_connection(*server.addresses[0])
    busy.write(GET.replace(b"/ ", b"/slow "))
    await begun.wait()
    draining = asyncio.create_task(server.drain(20))
    assert await idle_reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*server.addresses[0])
    assert not draining.done()
    gate.set()
    [answer] = kit.parse_answers(await busy_reader.read())
    assert answer.body == b"done"
    assert answer.headers[b"connection"] == b"close"
    assert await draining is True
    idle.close()
    busy.close()


async def test_what_outlasts_the_drain_is_cut_off_and_cleans_up(kit) -> None:
    begun = asyncio.Event()
    cleaned = []

    async def handler(request):
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    server = await start_server(handler)
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(GET)
    await begun.wait()
    assert await server.drain(0) is False
    assert cleaned == [True]
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_a_stream_under_way_ends_before_the_drain_does(kit) -> None:
    gate = asyncio.Event()

    async def pieces():
        yield b"first"
        await gate.wait()
        yield b"last"

    async def handler(request):
        return Response(200, [], Streamed(pieces()))

    server = await start_server(handler)
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(GET)
    got = await reader.readuntil(b"first\r\n")
    draining = asyncio.create_task(server.drain(20))
    await asyncio.sleep(0)
    gate.set()
    got += await reader.read()
    assert kit.parse_answers(got)[0].body == b"firstlast"
    assert await draining is True
    writer.close()


async def test_draining_an_idle_server_ends_at_once(kit) -> None:
    server = await start_server(kit.echo)
    assert await server.drain(20) is True
    await server.close()


async def test_a_socket_that_is_reset_at_once_does_no_harm(kit) -> None:
    async with await start_server(kit.echo) as server:
        for _ in range(10):
            sock = socket.create_connection(server.addresses[0])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.send(GET)
            sock.close()
        got = await kit.exchange(server.addresses[0], GET.replace(b"1.1", b"1.0"))
        assert kit.parse_answers(got)[0].status == 200


async def test_a_connection_accepted_while_the_server_drains_is_told_and_does_not_hold_it(
    kit, clock
) -> None:
    """It was in the listener's hands when the drain began."""
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Response()

    first = kit.make_connection(handler, clock=clock)
    first.feed(GET)
    draining = asyncio.create_task(first.server.drain(20))
    await kit.settle()
    late = type(first)(ServerConnection(first.server, loopback=True))
    late.feed(GET)
    [answer] = kit.parse_answers(late.sent)
    assert (answer.status, answer.headers[b"connection"]) == (503, b"close")
    assert b"shutting down" in answer.body
    gate.set()
    await kit.settle()
    assert first.closing
    late.close()
    assert await draining is True
