"""What a handler gives is what goes out, framed so that nobody can mistake its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from dolmen.http import (
    NO_BODY,
    EncodedHeaders,
    Headers,
    HTTPError,
    Request,
    Response,
    Streamed,
    problem,
)  # fmt: skip

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"


class Counted:
    """A stream that knows whether it was closed."""

    def __init__(self, pieces, length=None, error=None) -> None:
        self.pieces, self.length, self.error = pieces, length, error
        self.closed = 0

    async def __aiter__(self):
        for piece in self.pieces:
            await asyncio.sleep(0)
            yield piece
        if self.error:
            raise self.error

    async def aclose(self) -> None:
        self.closed += 1


def answering(response, how: str = "ready"):
    """A handler that is a plain function, a coroutine that waits or not, or gives a future."""

    def ready(request):
        if isinstance(response, Exception):
            raise response
        return response

    async def coroutine(request):
        if how == "waiting":
            await asyncio.sleep(0)
        return ready(request)

    def future(request):
        given = asyncio.get_running_loop().create_future()
        if isinstance(response, Exception):
            given.set_exception(response)
        else:
            given.set_result(response)
        return given

    return {"ready": ready, "future": future}.get(how, coroutine)


@pytest.fixture(params=["ready", "inline", "waiting", "future"])
def ask(kit, request):
    async def ask(response, data=GET):
        transport = kit.make_connection(answering(response, request.param))
        transport.feed(data)
        await kit.settle(30)
        return transport

    return ask


async def test_a_small_answer_goes_out_in_one_write(kit) -> None:
    transport = kit.make_connection(answering(Response(200, [(b"A", b"b")], b"hello")))
    writes = []
    transport.write = writes.append
    transport.feed(GET)
    await kit.settle()
    [data] = writes
    [answer] = kit.parse_answers(data)
    assert answer.body == b"hello"
    assert answer.headers[b"a"] == b"b"
    assert answer.headers[b"server"] == b"dolmen"
    assert answer.headers[b"date"].endswith(b" GMT")
    assert b"connection" not in answer.headers


@pytest.mark.parametrize("body", [b"hello", bytearray(b"hello"), memoryview(b"hello")])
async def test_bytes_like_bodies(kit, ask, body) -> None:
    [answer] = kit.parse_answers((await ask(Response(200, [], body))).written)
    assert answer.body == b"hello"


async def test_a_large_body_of_bytes_arrives(kit, ask) -> None:
    [answer] = kit.parse_answers((await ask(Response(200, [], b"x" * 1_000_000))).written)
    assert answer.body == b"x" * 1_000_000


async def test_encoded_headers_are_sent_as_they_are(kit, ask) -> None:
    headers = EncodedHeaders.of([(b"A", b"b"), (b"C", b"d")])
    [answer] = kit.parse_answers((await ask(Response(200, headers, b"x"))).written)
    assert (answer.headers[b"a"], answer.headers[b"c"]) == (b"b", b"d")


async def test_a_stream_of_known_length(kit, ask) -> None:
    stream = Counted([b"he", b"", memoryview(b"llo")], 5)
    transport = await ask(Response(200, [], stream), GET + GET)
    first = kit.parse_answers(transport.written)[0]
    assert first.body == b"hello"
    assert first.headers[b"content-length"] == b"5"
    assert stream.closed >= 1


async def test_a_stream_of_unknown_length_is_chunked(kit, ask) -> None:
    stream = Counted([b"he", b"", b"llo"])
    transport = await ask(Response(200, [], stream))
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"hello"
    assert answer.headers[b"transfer-encoding"] == b"chunked"
    assert stream.closed == 1
    assert not transport.ended


async def test_head_gets_the_length_and_no_body(kit, ask) -> None:
    transport = await ask(Response(200, [], b"hello"), HEAD)
    [answer] = kit.parse_answers(transport.written, head=True)
    assert answer.headers[b"content-length"] == b"5"
    assert transport.written.endswith(b"\r\n\r\n")
    stream = Counted([b"hello"], 5)
    transport = await ask(Response(200, [], stream), HEAD)
    [answer] = kit.parse_answers(transport.written, head=True)
    assert answer.headers[b"content-length"] == b"5"
    assert stream.closed == 1
    assert not transport.ended


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_that_have_no_body(kit, ask, status) -> None:
    for body in (b"", b"ignored", Counted([b"x"])):
        transport = await ask(Response(status, [(b"ETag", b'"x"')], body))
        [answer] = kit.parse_answers(transport.written)
        assert b"content-length" not in answer.headers
        assert b"transfer-encoding" not in answer.headers
        assert not transport.ended


async def test_http_1_0_is_answered_without_chunks_and_closed(kit, ask) -> None:
    transport = await ask(Response(200, [], Counted([b"he", b"llo"])), OLD)
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"hello"
    assert b"transfer-encoding" not in answer.headers
    assert transport.ended


async def test_http_1_0_may_keep_the_connection(kit, ask) -> None:
    keep = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    transport = await ask(Response(200, [], b"x"), keep + keep)
    answers = kit.parse_answers(transport.written)
    assert [a.headers[b"connection"] for a in answers] == [b"keep-alive"] * 2
    assert not transport.ended


@pytest.mark.parametrize("value", [b"close", b"Close", b"x, close", b"keep-alive,close"])
async def test_connection_close_is_obeyed(kit, ask, value) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: %b\r\n\r\n" % value
    transport = await ask(Response(200, [], b"x"), data)
    [answer] = kit.parse_answers(transport.written)
    assert answer.headers[b"connection"] == b"close"
    assert transport.ended


async def test_proxy_connection_close_counts_too(kit, ask) -> None:
    """Some parsers take nothing more on a connection after it."""
    data = b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n"
    transport = await ask(Response(200, [], b"x"), data + GET)
    [answer] = kit.parse_answers(transport.written)
    assert answer.headers[b"connection"] == b"close"
    assert transport.ended


@pytest.mark.parametrize(
    ("pieces", "length"), [([b"abc"], 5), ([b"abc", b"def"], 5), ([], 1), ([b"x"], 0)]
)
async def test_a_stream_of_another_length_than_announced_cuts_the_connection(
    ask, caplog, pieces, length
) -> None:
    stream = Counted(pieces, length)
    transport = await ask(Response(200, [], stream))
    assert transport.aborted
    assert stream.closed == 1
    assert "announced" in caplog.text


@pytest.mark.parametrize("length", [None, 10])
async def test_a_stream_that_fails_never_looks_complete(ask, caplog, length) -> None:
    stream = Counted([b"abc"], length, error=RuntimeError("disk on fire"))
    transport = await ask(Response(200, [], stream))
    assert transport.aborted
    assert b"\r\n0\r\n\r\n" not in transport.written
    assert stream.closed == 1
    assert "disk on fire" in caplog.text


async def test_an_http_error_becomes_its_problem(kit, ask) -> None:
    error = HTTPError(507, "There is no room.", [(b"Retry-After", b"5")])
    transport = await ask(error)
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 507
    assert answer.headers[b"retry-after"] == b"5"
    assert answer.problem == {
        "type": "about:blank",
        "title": "Insufficient Storage",
        "status": 507,
        "detail": "There is no room.",
    }
    assert not transport.ended


async def test_any_other_error_is_logged_and_tells_nothing(kit, ask, caplog) -> None:
    with caplog.at_level(logging.ERROR, "dolmen.http"):
        transport = await ask(RuntimeError("secret"))
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 500
    assert b"secret" not in transport.written
    assert "secret" in caplog.text


async def test_what_is_no_response_is_a_500(kit, ask, caplog) -> None:
    transport = await ask(None)
    transport.feed(GET)  # recognized by the lines of the first
    await kit.settle()
    assert [answer.status for answer in kit.parse_answers(transport.written)] == [500, 500]
    assert caplog.text


@pytest.mark.parametrize(
    "header",
    [
        (b"A", b"b\r\nC: d"),
        (b"A", b"b\nC: d"),
        (b"A", b"b\rc"),
        (b"A", b"b\x00"),
        (b"A", b"b\r\n"),
        (b"A\r\nB", b"c"),
        (b"A: b", b"c"),
        (b"", b"c"),
        (b"Content-Length", b"5"),
        (b"transfer-encoding", b"chunked"),
        (b"Connection", b"close"),
        ("A", b"b"),
        (b"A", "b"),
        (b"A", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_headers_can_not_be_injected(kit, ask, caplog, header, stream) -> None:
    body = Counted([b"x"], 1) if stream else b"x"
    [answer] = kit.parse_answers((await ask(Response(200, [header], body))).written)
    assert answer.status == 500
    assert b"c" not in answer.headers
    assert b"b" not in answer.headers
    with pytest.raises(ValueError, match="header"):
        EncodedHeaders.of([header])


async def test_problems_may_have_more_members() -> None:
    told = problem(404, "gone", headers=[(b"A", b"b")], stamp=5)
    assert told.body.endswith(b'"stamp": 5}\n')
    assert b'"title": "Not Found"' in told.body


async def test_requests_are_answered_in_order_one_at_a_time(kit) -> None:
    order = []

    async def handler(request):
        order.append(("begin", request.target))
        if request.target != b"/2":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        order.append(("end", request.target))
        return Response(200, [], request.target)

    transport = kit.make_connection(handler)
    transport.feed(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(5)))
    await kit.settle(40)
    targets = [b"/%d" % n for n in range(5)]
    assert [a.body for a in kit.parse_answers(transport.written)] == targets
    assert order == [(what, t) for t in targets for what in ("begin", "end")]


async def test_pipelined_bytes_do_not_grow_without_bound(kit) -> None:
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Response(200, [], b"x")

    transport = kit.make_connection(handler)
    one = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    transport.feed(one)
    fed = 1
    while not transport.paused:
        transport.feed(one)
        fed += 1
        assert fed * len(one) < 200_000
    gate.set()
    for _ in range(20_000):
        await asyncio.sleep(0)
        if len(transport.written) and transport.written.count(b"\r\n\r\nx") == fed:
            break
    assert transport.written.count(b"\r\n\r\nx") == fed
    assert not transport.paused


async def test_a_client_that_takes_nothing_gets_no_more_answers(kit) -> None:
    transport = kit.make_connection(answering(Response(200, [], b"x")))
    transport.feed(GET)
    transport.protocol.pause_writing()
    transport.feed(GET + GET)
    assert len(kit.parse_answers(transport.written)) == 1
    transport.protocol.resume_writing()
    await kit.settle()
    assert len(kit.parse_answers(transport.written)) == 3


# Expect: 100-continue and unread bodies.

UPLOAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"


async def test_continue_is_sent_when_the_body_is_first_read(kit) -> None:
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Response(200, [], await request.body.read(100))

    transport = kit.make_connection(handler)
    transport.feed(EXPECT % 5)
    await kit.settle()
    assert transport.written == b""
    gate.set()
    await kit.settle()
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    transport.feed(b"hello")
    await kit.settle()
    interim, answer = kit.parse_answers(transport.written)
    assert (interim.status, answer.body) == (100, b"hello")
    transport.written = b""
    transport.feed(GET)
    assert transport.ended is False


async def test_continue_is_sent_after_a_streamed_answer_too(kit) -> None:
    async def pieces():
        yield b"streamed"

    async def handler(request):
        if request.method == "GET":
            return Response(200, [], Streamed(pieces(), 8))
        return Response(200, [], await request.body.read(100))

    transport = kit.make_connection(handler)
    transport.feed(GET)
    await kit.settle()
    assert transport.written.endswith(b"streamed")
    transport.written = b""
    transport.feed(EXPECT % 5)
    await kit.settle()
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_an_expecting_upload_is_refused_before_its_body(kit, ask) -> None:
    transport = await ask(Response(507, [], b"full"), EXPECT % 5)
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 507
    assert answer.headers[b"connection"] == b"close"
    assert transport.ended


async def test_continue_is_not_asked_for_when_the_body_is_already_there(kit) -> None:
    transport = kit.make_connection(kit.echo)
    await transport.feed_all(EXPECT % 5 + b"hello")
    await kit.settle()
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 200


async def test_a_small_rest_of_a_body_is_dropped_and_the_connection_kept(kit) -> None:
    async def handler(request):
        if request.method == "POST":
            await anext(aiter(request.body))
        return Response(200, [], request.target)

    transport = kit.make_connection(handler)
    transport.feed(UPLOAD % 70_000 + b"x" * 60_000)
    await kit.settle()
    await transport.feed_all(b"x" * 10_000 + GET)
    await kit.settle()
    assert [a.status for a in kit.parse_answers(transport.written)] == [200, 200]
    assert not transport.ended


async def test_a_large_unread_body_ends_the_connection_softly(kit, ask) -> None:
    transport = await ask(Response(413, [], b"no"), UPLOAD % 1_000_000 + b"x" * 1000)
    [answer] = kit.parse_answers(transport.written)
    assert answer.status == 413
    assert answer.headers[b"connection"] == b"close"
    assert transport.eof
    assert not transport.closing
    transport.feed(b"x" * 500_000)  # thrown away
    await kit.settle()
    assert not transport.paused
    transport.server.sweep()


async def test_an_unread_chunked_body_ends_the_connection(kit, ask) -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"
    transport = await ask(Response(200, [], b"ok"), data)
    [answer] = kit.parse_answers(transport.written)
    assert answer.headers[b"connection"] == b"close"
    assert transport.ended


async def test_a_body_read_after_the_answer_is_an_error(kit) -> None:
    bodies = []

    async def handler(request):
        bodies.append(request.body)
        return Response(200, [], b"ok")

    transport = kit.make_connection(handler)
    transport.feed(UPLOAD % 1_000_000)
    await kit.settle()
    with pytest.raises(HTTPError, match="answered"):
        await bodies[0].read(10_000_000)


# Bodies.


async def test_small_bodies_arrive_whole(kit) -> None:
    seen = []

    async def handler(request):
        seen.append((request.body.whole, request.body.length))
        return Response(200)

    transport = kit.make_connection(handler)
    transport.feed(UPLOAD % 5)
    assert not seen
    transport.feed(b"hel")
    await kit.settle()
    transport.feed(b"lo" + UPLOAD % 0)
    transport.feed(UPLOAD % 65536 + b"x" * 65536)
    await kit.settle()
    assert seen == [(b"hello", 5), (b"", 0), (b"x" * 65536, 65536)]


@pytest.mark.parametrize("waits", [False, True])
async def test_read_refuses_what_is_too_large(kit, waits) -> None:
    async def handler(request):
        if waits:
            await asyncio.sleep(0)
        await request.body.read(4)
        raise AssertionError

    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    for data in (UPLOAD % 5 + b"hello", UPLOAD % 1_000_000, EXPECT % 5, chunked):
        transport = kit.make_connection(handler)
        transport.feed(data)
        await kit.settle()
        [answer] = kit.parse_answers(transport.written)
        assert answer.status == 413
        assert "4 bytes" in answer.problem["detail"]


# Handlers that wait.


async def test_timeout_and_current_task_work_after_the_first_wait(kit) -> None:
    async def handler(request):
        await asyncio.sleep(0)
        assert asyncio.current_task() is not None
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, ValueError("x"))
        with pytest.raises(ValueError, match="x"):
            await future
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        return Response(200, [], b"done")

    transport = kit.make_connection(handler)
    transport.feed(GET)
    async with asyncio.timeout(10):
        while not transport.written:
            await asyncio.sleep(0)
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"done"


async def test_an_error_in_the_first_awaited_future_reaches_the_handler(kit) -> None:
    async def handler(request):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, ValueError("x"))
        try:
            await future
        except ValueError:
            await asyncio.sleep(0)
            return Response(200, [], b"mended")

    transport = kit.make_connection(handler)
    transport.feed(GET)
    await kit.settle(20)
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"mended"


@pytest.mark.parametrize("first", [0, 1])
async def test_a_client_that_goes_away_cancels_the_handler(kit, first) -> None:
    cleaned = []

    async def handler(request):
        try:
            for _ in range(first):
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    transport = kit.make_connection(handler)
    transport.feed(GET)
    await kit.settle()
    transport.close()
    await kit.settle()
    assert cleaned == [True]
    assert not transport.server.connections
    assert not transport.server.connections


async def test_a_handler_is_cancelled_even_where_it_has_just_moved_on(kit) -> None:
    """Its future was there and its task not begun when the client went away."""
    seen = []
    there = asyncio.get_running_loop().create_future()

    async def handler(request):
        try:
            await there
            seen.append("moved on")
            await asyncio.sleep(0)
            seen.append("not reached")
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cancelled")
            raise

    transport = kit.make_connection(handler)
    transport.feed(GET)
    there.set_result(None)
    transport.close()
    await kit.settle()
    assert seen == ["moved on", "cancelled"]
    assert not transport.server.connections


@pytest.mark.parametrize("size", [1_000_000, None])
async def test_a_client_that_goes_away_within_its_body_cancels_the_reader(kit, size) -> None:
    ended = []

    async def handler(request):
        try:
            await request.body.receive_into(memoryview(bytearray(1_000_000)))
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    transport = kit.make_connection(handler)
    coding = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe"
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\n" + coding
    await transport.feed_all(UPLOAD % size + b"x" * 1000 if size else chunked)
    await kit.settle()
    transport.close()
    await kit.settle()
    assert ended in (["CancelledError"], ["BadContent"])
    assert b"HTTP/1.1" not in transport.written


async def test_a_stream_is_closed_when_the_client_goes_away(kit) -> None:
    closed = []

    async def pieces():
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    stream = Counted([b"x"] * 1000)
    for each in (stream, Streamed(pieces())):
        transport = kit.make_connection(answering(Response(200, [], each)))
        transport.feed(GET)
        await kit.settle(4)
        transport.close()
        await kit.settle()
    assert stream.closed == 1
    assert closed == [True]


# Observing.


async def test_observe_is_told_of_every_answer(kit) -> None:
    seen = []

    async def handler(request):
        if request.target == b"/stream":
            return Response(200, [], Counted([b"abc"]))
        return Response(201, [], b"hello")

    def observe(request, status, sent, seconds) -> None:
        assert seconds >= 0
        seen.append((request and request.target, status, sent))

    transport = kit.make_connection(handler, observe=observe)
    transport.feed(GET)
    transport.feed(HEAD)
    transport.feed(GET.replace(b"/ ", b"/stream "))
    await kit.settle()
    transport.feed(b"BAD\r\n\r\n")
    assert [s[:2] for s in seen] == [(b"/", 201), (b"/", 201), (b"/stream", 200), (None, 400)]
    assert [s[2] for s in seen[:3]] == [5, 0, 3]


async def test_a_client_that_has_gone_is_no_failure(kit) -> None:
    """Its transport is closing, and the loop has not said so yet."""
    seen = []
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Response(200, [], Counted([b"abc"], 3))

    transport = kit.make_connection(handler, observe=lambda _, status, *__: seen.append(status))
    transport.feed(GET)
    transport.hangs = True
    transport.close()
    gate.set()
    await kit.settle()
    assert seen == [200]
    assert not transport.written


async def test_a_stream_that_fails_to_close_harms_nobody(kit, ask, caplog) -> None:
    class Stubborn(Counted):
        async def aclose(self) -> None:
            raise RuntimeError("stuck")

    transport = await ask(Response(200, [], Stubborn([b"x"])), GET)
    assert kit.parse_answers(transport.written)[0].body == b"x"
    assert "stuck" in caplog.text


@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_cancels_itself_ends_the_connection(kit, waits) -> None:
    async def handler(request):
        if waits:
            await asyncio.sleep(0)
        raise asyncio.CancelledError

    transport = kit.make_connection(handler)
    transport.feed(GET)
    await kit.settle()
    assert transport.aborted
    assert not transport.written


async def test_an_answer_to_who_is_gone_is_dropped(kit) -> None:
    stream = Counted([b"x"])

    async def handler(request):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Response(200, [], stream if request.target == b"/stream" else b"x")

    for target in (b"/ ", b"/stream "):
        transport = kit.make_connection(handler)
        transport.feed(GET.replace(b"/ ", target))
        await kit.settle()
        transport.close()
        await kit.settle()
        assert not transport.written
        assert not transport.server.connections
    assert stream.closed == 1


async def test_a_problem_reads_well_in_a_terminal_whatever_it_is_about() -> None:
    assert "curl … ü" in problem(415, "curl … ü").body.decode()
    assert problem(404, "no path: \udcff").body.endswith(b'"detail": "no path: ?"}\n')


def test_paths_and_queries() -> None:
    def request(target: bytes) -> Request:
        return Request("GET", target, Headers(), NO_BODY)

    asked = request(b"/a%20b/%C3%A4?x=1&y=%20+z&x=2&empty=&flag")
    assert asked.raw_path == b"/a%20b/%C3%A4"
    assert asked.query == {"x": "2", "y": "  z", "empty": "", "flag": ""}
    assert request(b"/plain").query == {}
