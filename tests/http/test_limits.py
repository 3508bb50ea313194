"""Each limit that is exceeded has its own status."""

from __future__ import annotations

import pytest

from dolmen.http import Limits, Response

START = b"GET / HTTP/1.1\r\nHost: a\r\n"
LIMITS = Limits(request_line=100, header_count=5, header_size=300, body_size=1000, connections=2)


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("status", "data"),
    [
        (200, b"GET /" + b"x" * 86 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (414, b"GET /" + b"x" * 87 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (414, b"GET /" + b"x" * 5000),
        (200, START + b"A: b\r\n" * 4 + b"\r\n"),
        (431, START + b"A: b\r\n" * 5 + b"\r\n"),
        (431, START + b"A: " + b"b" * 300 + b"\r\n\r\n"),
        (431, START + b"A: " + b"b" * 5000),
        (200, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n"),
        (
            413,
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"64\r\n%b\r\n" % (b"x" * 100) * 11
            + b"0\r\n\r\n",
        ),
    ],
)
async def test_sizes(kit, status, data, bytewise) -> None:
    transport = kit.make_connection(kit.echo, limits=LIMITS)
    for piece in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
        await transport.feed_all(piece)
    await kit.settle()
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == status
    assert transport.ended == (status != 200)


async def test_the_default_limits_are_those_of_the_documents() -> None:
    limits = Limits()
    assert (limits.request_line, limits.header_count, limits.header_size) == (8192, 100, 32768)
    assert (limits.header_deadline, limits.body_idle, limits.body_rate) == (10, 30, 1024)


async def test_one_connection_too_many_is_told_to_come_back(kit) -> None:
    from dolmen.http.server_connection import ServerConnection

    first = kit.make_connection(kit.echo, limits=LIMITS)
    server = first.server
    make = type(first)
    second = make(ServerConnection(server, loopback=False))
    third = make(ServerConnection(server, loopback=False))
    assert not second.written
    [answer] = kit.parse_answers(third.written)
    assert answer.status == 503
    assert answer.headers[b"retry-after"] == b"1"
    assert third.ended
    third.feed(START + b"\r\n")
    assert len(kit.parse_answers(third.written)) == 1
    third.close()
    second.close()
    await kit.settle()
    fourth = make(ServerConnection(server, loopback=False))
    fourth.feed(START + b"\r\n")
    await kit.settle()
    assert kit.parse_answers(fourth.written)[0].status == 200


async def test_refused_connections_linger_only_while_they_are_few(kit) -> None:
    from dolmen.http.server_connection import ServerConnection

    first = kit.make_connection(kit.echo, limits=Limits(connections=16))
    more = [type(first)(ServerConnection(first.server, loopback=False)) for _ in range(20)]
    refused = more[15:]
    for transport in refused:
        assert kit.parse_answers(transport.written)[0].status == 503
    assert [transport.closing for transport in refused] == [False, False, True, True, True]


async def test_a_refused_connection_is_cut_after_a_moment(kit, clock) -> None:
    transport = kit.make_connection(kit.echo, clock=clock)
    transport.feed(b"BAD\r\n\r\n")
    assert transport.eof
    transport.server.sweep()
    clock.time += 1.5
    transport.server.sweep()
    assert not transport.closing
    transport.feed(b"more of the bad")
    clock.time += 1.5
    transport.server.sweep()
    assert transport.aborted


async def test_head_lines_remembered_from_the_last_request_do_not_skip_checks(kit) -> None:
    async def handler(request):
        return Response(200, [], request.target)

    transport = kit.make_connection(handler, limits=LIMITS)
    transport.feed(START + b"\r\n")
    transport.feed(b"GET /" + b"x" * 200 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    first, second = kit.parse_answers(transport.written)
    assert (first.status, second.status) == (200, 414)
