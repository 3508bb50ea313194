"""What is not HTTP/1.1 is refused with its own status, and the connection ends."""

from __future__ import annotations

import pytest

HOST = b"Host: a\r\n"
START = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def with_line(line: bytes) -> bytes:
    return START + line + b"\r\n\r\n"


def with_first(line: bytes) -> bytes:
    return line + b"\r\n" + HOST + b"\r\n"


def with_length(value: bytes) -> bytes:
    return POST + b"Content-Length:" + value + b"\r\n\r\nhello"


def with_coding(value: bytes) -> bytes:
    return POST + b"Transfer-Encoding:" + value + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


def with_target(target: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n"


def with_host(host: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost:" + host + b"\r\n\r\n"


# fmt: off
CASES: list[tuple[int, bytes]] = [
    # Line ends.
    (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    (400, b"GET / HTTP/1.1\rHost: a\r\r"),
    (400, with_first(b"GET / HTTP/1.1\r")),
    (400, START + b"A: b\rc\r\n\r\n"),
    (400, START + b"A: b\nC: d\r\n\r\n"),
    (400, START + b"A: b\r\r\n\r\n"),
    (400, START + b"\rX"),
    (400, b"\n" + START + b"\r\n"),
    (400, b"\r" + START + b"\r\n"),
    (400, b"\r\n\r\n" + START + b"\r\n"),
    (400, b"\r\n\n" + START + b"\r\n"),
    (400, b"\n\n" + START + b"\r\n"),
    # Request line.
    *[(400, with_first(each)) for each in (
        b" GET / HTTP/1.1", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET / HTTP/1.1 ",
        b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b"GET /a b HTTP/1.1", b"GET /",
    )],
    (400, b"GET /\r\n\r\n"),
    (400, b"GET\r\n\r\n"),
    *[(400, with_first(each)) for each in (
        b"GET HTTP/1.1", b"/ HTTP/1.1", b"\x00GET / HTTP/1.1",
    )],
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    (400, b"HTTP/1.1 200 OK\r\n\r\n"),
    *[(501, with_first(each)) for each in (
        b"get / HTTP/1.1", b"PROPFIND / HTTP/1.1", b"FETCH / HTTP/1.1", b"G-T / HTTP/1.1",
        b"GETT / HTTP/1.1",
    )],
    (400, with_first(b"G(T / HTTP/1.1")),
    (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    # Versions.
    *[(505, with_first(each)) for each in (
        b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET / HTTP/1.2", b"GET / HTTP/3.0",
    )],
    *[(400, with_first(each)) for each in (
        b"GET / HTTP/11", b"GET / HTTP/1.10", b"GET / HTTP/1", b"GET / http/1.1",
        b"GET / HTTX/1.1", b"GET / ICE/1.0", b"SOURCE / ICE/1.0", b"OPTIONS / RTSP/1.0",
    )],
    # Targets.
    (400, with_target(b"foo")),
    (400, with_target(b"*")),
    (400, with_target(b"*", b"POST")),
    *[(400, with_target(each)) for each in (
        b"/a#b", b"http://a/b#c", b"ftp://a/b", b"http:/a/b", b"http:///b", b"http://u@a/b",
        b"http://a:b/c", b"/\x01", b"/\x00", b"/\x7f", b"/\xff", b"a:80",
    )],
    # Header lines.
    *[(400, with_line(each)) for each in (
        b"A : b", b"A\t: b", b" A: b", b"A: b\r\n c", b"A: b\r\n\tc",
    )],
    (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    *[(400, with_line(each)) for each in (
        b"A", b": b", b"A B: c", b"A(: b", b"A\x00: b", b"\xc3\xa4: b", b"A: b\x00c", b"A: \x01",
        b"A: \x0b", b"A: \x7f", b"A: \x1b[0m",
    )],
    # Host.
    (400, b"GET / HTTP/1.1\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nA: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n"),
    (400, b"GET http://a/ HTTP/1.1\r\n\r\n"),
    *[(400, with_host(each)) for each in (
        b"", b" ", b" a b", b" a, b", b" a/b", b" u@a", b" a:b", b" a:1:2", b" a:123456", b" [::1",
        b" ::1", b" a?b", b" \xff",
    )],
    # Content-Length.
    *[(400, with_length(each)) for each in (
        b" +5", b" -5", b" 5,5", b" 5, 5", b" 5 5", b"", b" ", b" 0x5", b" 5.0", b" 5e0", b" 5;",
        b" five", b" \xb2", b" 1_0", b" 99999999999999999999999",
    )],
    (413, with_length(b" 18446744073709551615")),
    (413, with_length(b" 9223372036854775808")),
    (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    (400, POST + b"Content-Length: 5\r\nA: b\r\ncontent-length: 4\r\n\r\nhello"),
    # Transfer-Encoding.
    (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    (501, with_coding(b" gzip, chunked")),
    *[(400, with_coding(each)) for each in (
        b" chunked;q=1", b" chunked, gzip", b" chunked, chunked", b" gzip", b" identity",
        b" xchunked", b" chunked1", b" chun ked", b' "chunked"', b"", b" \x0bchunked",
    )],
    (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (501, POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    # Chunks.
    *[(400, CHUNKED + each) for each in (
        b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n", b"5\r\nhelloo\r\n0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n", b"g\r\nhello\r\n0\r\n\r\n", b"\r\nhello\r\n0\r\n\r\n",
        b";a=b\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\nhello\r\n0\r\n\r\n", b'5;"a\r\n\r\nhello\r\n0\r\n\r\n',
        b"5;a=\x00\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\r\nA: b\n\r\n", b"5\r\nhello\r\n0\r\nA : b\r\n\r\n",
        b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    )],
    (400, CHUNKED + b"5" + b";x" * 10_000 + b"\r\nhello\r\n0\r\n\r\n"),
    (400, CHUNKED + b"0\r\n" + b"A: b\r\n" * 5_000 + b"\r\n"),
    # Expectations.
    (417, POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello"),
    (417, POST + b"Expect: 100-continue, x\r\nContent-Length: 5\r\n\r\nhello"),
]
# fmt: on


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("status", "data"), CASES, ids=[repr(c[1])[2:60] for c in CASES])
async def test_malformed(kit, status: int, data: bytes, bytewise: bool) -> None:
    answered = []

    async def handler(request):
        answer = await kit.echo(request)
        answered.append(request)
        return answer

    transport = kit.make_connection(handler)
    for piece in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
        transport.feed(piece)
    await kit.settle()
    # A good request behind a bad one must not be served on the same connection.
    transport.feed(START + b"\r\n")
    await kit.settle()
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == status
    assert answer.headers[b"connection"] == b"close"
    assert answer.problem["detail"].endswith(".")
    assert transport.ended
    assert not answered


GOOD = [
    b"\r\n" + START + b"\r\n",
    START + b"A: \xff\r\n\r\n",
    START + b"A:b\r\n\r\n",
    START + b"A: \r\n\r\n",
    START + b"A:\t b \t\r\n\r\n",
    with_target(b"http://b/c"),
    with_target(b"http://b"),
    with_target(b"http://b?x"),
    with_target(b"HTTPS://b:1/c"),
    with_target(b"*", b"OPTIONS"),
    with_host(b" [::1]:80"),
    with_host(b" a:"),
    with_host(b" A.b-c_d:65535"),
    with_length(b" 5 "),
    with_length(b"\t5"),
    with_length(b" 0000000000000000005"),
    with_coding(b" Chunked"),
    CHUNKED + b'5;a="b c"\r\nhello\r\n0;last\r\nA: b\r\n\r\n',
    CHUNKED + b"0000000005\r\nhello\r\n0\r\n\r\n",
    POST + b"Expect: 100-Continue\r\nContent-Length: 5\r\n\r\nhello",
    START + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"PATCH / HTTP/1.1\r\nHost: a\r\n\r\n",
]


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("data", GOOD, ids=[repr(c)[2:60] for c in GOOD])
async def test_what_is_allowed_is_served_and_the_connection_kept(kit, data, bytewise) -> None:
    transport = kit.make_connection(kit.echo)
    for piece in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
        await transport.feed_all(piece)
    await kit.settle()
    written = transport.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    transport.written = b""
    transport.feed(START + b"\r\n")
    for each in (written, transport.written):
        [answer] = kit.parse_answers(each)
        assert answer.status == 200
    assert not transport.ended


async def test_http_2_with_prior_knowledge_is_told_what_to_use(kit) -> None:
    transport = kit.make_connection(kit.echo)
    settings = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00d"
    transport.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    transport.feed(settings)
    frames, data = [], transport.written
    while data:
        size = int.from_bytes(data[:3], "big")
        frames.append((data[3], data[9 : 9 + size]))
        data = data[9 + size :]
    (settings_type, _), headers, (body_type, detail), goaway = frames
    assert (settings_type, headers, body_type) == (4, (1, b"\x8c"), 0)  # 8c: status 400
    assert b"use HTTP/1.1" in detail
    assert goaway == (7, b"\0\0\0\1\0\0\0\x0d")
    assert transport.eof
    assert not transport.closing  # unread bytes would reset the connection


async def test_one_empty_line_is_forgiven_before_each_request(kit) -> None:
    """Old clients send one behind each body."""
    transport = kit.make_connection(kit.echo)
    for _ in range(4):
        transport.feed(with_length(b" 5"))
        transport.feed(b"\r\n")
    answers = kit.parse_answers(transport.written)
    assert [answer.status for answer in answers] == [200] * 4
    transport.feed(b"\r\n")
    assert kit.parse_answers(transport.written)[-1].status == 400


async def test_the_authority_of_an_absolute_target_overrules_host(kit) -> None:
    transport = kit.make_connection(kit.echo)
    transport.feed(b"GET http://b:8/c?d HTTP/1.1\r\nhost: a\r\nX: y\r\n\r\n")
    [answer] = kit.parse_answers(transport.written)
    assert b'"target": "/c?d"' in answer.body
    assert b'"headers": [["host", "b:8"], ["x", "y"]]' in answer.body


async def test_a_good_request_before_a_malformed_one_is_answered_first(kit) -> None:
    transport = kit.make_connection(kit.echo)
    transport.feed(START + b"\r\n" + b"GET / HTTP/1.1\nHost: a\n\n")
    first, second = kit.parse_answers(transport.written)
    assert (first.status, second.status) == (200, 400)
    assert transport.ended
