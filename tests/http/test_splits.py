"""However the bytes are cut into arrivals, the same messages come out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import uvloop
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen.errors import Unavailable
from dolmen.http import EncodedHeaders, Response, Streamed

SPECIAL = st.sampled_from([b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"0\r\n\r\n", b"5\r\n", b"GET / "])
BODIES = st.one_of(st.binary(max_size=40), st.lists(SPECIAL, max_size=8).map(b"".join))
LARGE = st.integers(0, 255).map(lambda b: bytes([b]) * 70_000)


def chunks_of(data: bytes, sizes: list[int], extension: bytes, trailer: bytes) -> bytes:
    coded = b""
    at = 0
    for size in sizes:
        piece = data[at : at + size]
        at += size
        if piece:
            coded += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    if data[at:]:
        coded += b"%X\r\n%b\r\n" % (len(data[at:]), data[at:])
    return coded + b"0\r\n" + trailer + b"\r\n"


@st.composite
def chunked(draw: st.DrawFn, bodies: st.SearchStrategy[bytes] = BODIES) -> tuple[bytes, bytes]:
    body = draw(bodies)
    sizes = draw(st.lists(st.integers(1, 30), max_size=5))
    extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"']))
    trailer = draw(st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]))
    return body, chunks_of(body, sizes, extension, trailer)


@st.composite
def request(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    target = draw(st.sampled_from([b"/", b"/a%20b?c=d", b"/blob/x", b"/" + b"y" * 300]))
    headers = draw(st.sampled_from([b"", b"A: b\r\n", b"X-Long: " + b"z" * 200 + b"\r\n"]))
    start = b" %b HTTP/1.1\r\nHost: a\r\n%b" % (target, headers)
    kind = draw(st.sampled_from(["GET", "POST", "LARGE", "CHUNKED"]))
    body = b""
    if kind == "GET":
        method, data = "GET", b"GET" + start + b"\r\n"
    else:
        method = "POST"
        if kind == "CHUNKED":
            body, coded = draw(chunked())
            data = b"POST" + start + b"Transfer-Encoding: chunked\r\n\r\n" + coded
        else:
            body = draw(LARGE if kind == "LARGE" else BODIES)
            data = b"POST" + start + b"Content-Length: %d\r\n\r\n" % len(body) + body
    told = {"method": method, "target": target.decode(), "body": body.decode("latin-1")}
    return told, data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True) if a < b]


PLACES = st.lists(st.integers(0, 1 << 20), max_size=12)


async def collect(body, mode: str) -> bytes:
    if mode == "read":
        return await body.read(1 << 20)
    if mode == "iterate":
        return b"".join([piece async for piece in body])
    got = b""
    buffer = memoryview(bytearray(1000 if mode == "small buffer" else 40_000))
    while count := await body.receive_into(buffer):
        got += buffer[:count]
        if count < len(buffer):
            assert await body.receive_into(buffer) == 0
            break
    return got


MODES = st.sampled_from(["read", "iterate", "small buffer", "large buffer"])


def test_requests_are_the_same_however_they_arrive(kit) -> None:
    @settings(max_examples=300)
    @given(st.lists(request(), min_size=1, max_size=4), PLACES, MODES, st.booleans())
    def check(requests, places, mode, waits) -> None:
        async def handler(request):
            if waits:
                await asyncio.sleep(0)
            body = await collect(request.body, mode)
            told = {
                "method": request.method,
                "target": request.target.decode(),
                "body": body.decode("latin-1"),
            }
            return Response(200, [], json.dumps(told).encode())

        async def play() -> None:
            transport = kit.make_connection(handler)
            for piece in cut(b"".join(data for _, data in requests), places):
                await transport.feed_all(piece)
            for _ in range(1000):
                if transport.written.count(b"HTTP/1.1 200") == len(requests):
                    break
                await asyncio.sleep(0)
            await kit.settle()
            answers = kit.parse_answers(transport.written)
            assert [json.loads(a.body) for a in answers] == [told for told, _ in requests]
            assert not transport.ended

        uvloop.run(play())

    check()


@st.composite
def response(draw: st.DrawFn) -> tuple[str, int, bytes, bytes]:
    status = draw(st.sampled_from([200, 201, 206, 404, 503]))
    start = b"HTTP/1.1 %d Some Reason\r\nA: b\r\n" % status
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]))
    kind = draw(st.sampled_from(["SIZED", "LARGE", "CHUNKED", "HEAD", "EMPTY"]))
    body = b""
    if kind == "HEAD":
        data = start + b"Content-Length: 77\r\n\r\n"
    elif kind == "EMPTY":
        status = draw(st.sampled_from([204, 304]))
        data = b"HTTP/1.1 %d X\r\nETag: y\r\n\r\n" % status
    elif kind == "CHUNKED":
        body, coded = draw(chunked(st.one_of(BODIES, LARGE)))
        data = start + b"Transfer-Encoding: chunked\r\n\r\n" + coded
    else:
        body = draw(LARGE if kind == "LARGE" else BODIES)
        data = start + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return "HEAD" if kind == "HEAD" else "GET", status, body, interim + data


def test_responses_are_the_same_however_they_arrive(kit) -> None:
    @settings(max_examples=300)
    @given(st.lists(response(), min_size=1, max_size=3), PLACES, MODES)
    def check(responses, places, mode) -> None:
        async def play() -> None:
            transport, pool = kit.make_call_connection()
            connection = transport.get_protocol()
            for method, status, body, data in responses:

                async def receive(method=method):
                    answer = await connection.exchange(
                        b"a request", None, expect=False, head_only=method == "HEAD", reads=True
                    )
                    return answer.status, await collect(answer.body, mode)

                receiving = asyncio.ensure_future(receive())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                for piece in cut(data, places):
                    await transport.feed_all(piece)
                assert await receiving == (status, body)
                assert pool.released.pop() is connection
                assert not transport.closing

        uvloop.run(play())

    check()


def test_a_chunked_body_cut_short_is_not_complete(kit) -> None:
    @settings(max_examples=200)
    @given(chunked(), st.data())
    def check(coded, data) -> None:
        async def play() -> None:
            transport = kit.make_connection(kit.echo)
            transport.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            await transport.feed_all(coded[1][: data.draw(st.integers(0, len(coded[1]) - 1))])
            await kit.settle()
            assert not transport.written
            transport.close()
            await kit.settle()
            assert not transport.server.connections

        uvloop.run(play())

    check()


async def produced(size: int):
    for at in range(0, size, 7):
        yield b"x" * min(7, size - at)


async def waiting(request, then):
    await asyncio.sleep(0)
    return await then(request)


async def reading(request):
    return Response(200, [], await request.body.read(1 << 20))


async def relayed(request):
    yield await request.body.read(1 << 20)


async def failing(request):
    raise RuntimeError


HANDLERS = {
    b"/plain": lambda _: Response(200, EncodedHeaders(b""), b"plain"),
    b"/read": reading,
    b"/wait": lambda request: waiting(request, reading),
    b"/fail": failing,
    b"/later": lambda request: waiting(request, failing),
    b"/sized": lambda _: Response(200, [], Streamed(produced(100), 100)),
    b"/chunked": lambda _: Response(200, [], Streamed(produced(100))),
    b"/relay": lambda request: Response(200, [], Streamed(relayed(request))),
    b"/204": lambda _: Response(204),
    b"/304": lambda _: Response(304, [], Streamed(produced(100))),
}
WRONG = [
    b"A : b", b" folded", b"A: \0", b"Host: b", b"Content-Length: x", b"Content-Length: 1, 1",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x",
]  # fmt: skip


@st.composite
def any_request(draw: st.DrawFn) -> bytes:
    """A request, seldom with something wrong, that any handler may get."""
    path = draw(st.sampled_from([*HANDLERS]))
    target = draw(st.sampled_from([path] * 9 + [b"http://b" + path, b"*", b"/a#b"]))
    version = draw(st.sampled_from([b"1.1"] * 9 + [b"1.0", b"1.0", b"1.2"]))
    lines = [b"Host: a"]
    body = b""
    framing = draw(st.sampled_from(["none", "none", "sized", "chunked", "both"]))
    if framing in ("sized", "both"):
        body = draw(BODIES)
        lines.append(b"Content-Length: %d" % len(body))
    if framing == "chunked" or (framing == "both" and draw(st.booleans())):
        body = draw(chunked())[1]
        lines.append(b"Transfer-Encoding: chunked")
        if draw(st.integers(0, 9)) == 9:
            body = body.replace(b"\r\n", b"\n", 1)
    lines += draw(st.sampled_from([[]] * 20 + [[line] for line in WRONG]))
    last = [[b"Connection: close"], [b"Connection: keep-alive"], [b"X: " + b"y" * 50]]
    lines += draw(st.sampled_from([[]] * 9 + last))
    before = draw(st.sampled_from([b""] * 15 + [b"\r\n", b"\r\n\r\n", b"\n"]))
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS"]))
    first = b"%b %b HTTP/%b" % (method, target, version)
    return before + b"\r\n".join([first, *lines, b"", b""]) + body


class Heard:
    """The requests that llhttp finds."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.parser = HttpRequestParser(self)
        with contextlib.suppress(HttpParserError, HttpParserUpgrade):
            self.parser.feed_data(data)

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_headers_complete(self) -> None:
        path = self.target.removeprefix(b"http://b")
        self.requests.append((self.parser.get_method(), path))
        self.target = b""


def test_what_is_answered_does_not_depend_on_how_it_arrives(kit) -> None:
    """Valid or not: the same requests, none but those llhttp finds, and the same answers."""

    @settings(max_examples=300)
    @given(st.lists(any_request(), min_size=1, max_size=4), PLACES, st.booleans())
    def check(requests, places, waits) -> None:
        data = b"".join(requests)

        async def play(pieces: list[bytes]) -> object:
            asked: list[tuple[bytes, bytes]] = []

            def handler(request):
                asked.append((request.method.encode(), request.target))
                return HANDLERS.get(request.raw_path, HANDLERS[b"/plain"])(request)

            transport = kit.make_connection(handler)
            for piece in pieces:
                await transport.feed_all(piece)
                await kit.settle(10 * waits)
            await kit.settle(80)
            heads = [method == b"HEAD" for method, _ in asked]
            answers = kit.parse_answers(transport.written, heads=heads)
            told = [(each.status, each.headers.get(b"connection"), each.body) for each in answers]
            refused = [status for status, *_ in told[len(asked) :]]  # why depends on what has come
            ended = transport.ended, transport.aborted
            transport.close()
            await kit.settle()
            assert not transport.server.connections
            assert asked == Heard(data).requests[: len(asked)]
            assert len(refused) <= 1
            return asked, told[: len(asked)], bool(refused), ended

        whole = uvloop.run(play([data]))
        bytewise = [data[i : i + 1] for i in range(len(data))]
        behind_one = [requests[0], b"".join(requests[1:])]
        for pieces in (cut(data, places), bytewise, behind_one, requests):
            assert uvloop.run(play(pieces)) == whole

    logging.disable()  # of failures
    check()
    logging.disable(logging.NOTSET)


GRAMMAR = st.sampled_from(
    [
        *(b"GET ", b"POST ", b"/", b"/x?y", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: a\r\n"),
        *(b"Content-Length: 3\r\n", b"Content-Length: 100000\r\n", b"Connection: close\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"\r\n", b"\n", b"\r"),
        *(b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc", b"\x00", b": ", b" "),
        *(b"Upgrade: x\r\nConnection: upgrade\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ]
)


def test_no_bytes_break_the_server(kit) -> None:
    """Whatever comes in, what goes out is well-formed, and nothing is raised."""

    @settings(max_examples=500)
    @given(st.lists(st.one_of(GRAMMAR, st.binary(max_size=3)), max_size=25), PLACES)
    def check(tokens, places) -> None:
        async def play() -> None:
            transport = kit.make_connection(kit.echo)
            for piece in cut(b"".join(tokens), places):
                await transport.feed_all(piece)
            await kit.settle()
            transport.close()
            await kit.settle()
            assert not transport.server.connections
            kit.parse_answers(transport.written)

        uvloop.run(play())

    check()


RESPONSES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 X\r\n\r\n",
        b"HTTP/1.0 404 X\r\n", b"Content-Length: 3\r\n", b"Content-Length: 99999\r\n", b"\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"3\r\nabc\r\n", b"abc",
        b"0\r\n\r\n", b"\n", b"\x00", b": ",
    ]
)  # fmt: skip


def test_no_bytes_break_the_client(kit) -> None:
    @settings(max_examples=500)
    @given(st.lists(st.one_of(RESPONSES, st.binary(max_size=3)), max_size=15), PLACES, MODES)
    def check(tokens, places, mode) -> None:
        async def play() -> None:
            transport, _ = kit.make_call_connection()
            asking = transport.get_protocol().exchange(
                b"a request", None, expect=False, head_only=False, reads=True
            )

            async def receive() -> None:
                with contextlib.suppress(Unavailable):
                    await collect((await asking).body, mode)

            receiving = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for piece in cut(b"".join(tokens), places):
                await transport.feed_all(piece)
            transport.close()
            await receiving

        uvloop.run(play())

    check()
