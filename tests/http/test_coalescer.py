"""Answers of one turn of the loop go out together, and nothing overtakes or loses one."""

import asyncio

import pytest

from dolmen.http import Response, Streamed
from dolmen.http.encoding import EncodedHeaders

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
PLAIN = EncodedHeaders(b"")


async def echo(request):
    return Response(200, PLAIN, request.target)


async def pieces(request):
    async def given():
        yield b"in "
        yield b"pieces"

    if request.target == b"/1":
        return Response(200, PLAIN, Streamed(given()))
    return Response(200, PLAIN, request.target)


async def test_an_answer_waits_for_the_end_of_the_turn_and_no_longer(kit) -> None:
    transport = kit.make_connection(echo)
    transport.feed(GET % 0)
    assert transport.sent == b""
    await asyncio.sleep(0)
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"/0"


async def test_many_answers_do_not_wait_for_each_other_without_bound(kit) -> None:
    first = kit.make_connection(echo)
    first.feed(GET % 0)
    for _ in range(100):
        first.server.coalescer.send(first.protocol, b"")
    assert first.written


@pytest.mark.parametrize(
    "then", [GET % 1, b"nonsense\r\n\r\n", b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"]
)
async def test_what_is_sent_at_once_does_not_overtake_what_waits(kit, then) -> None:
    transport = kit.make_connection(pieces)
    transport.feed(GET % 0)
    transport.feed(then)
    await kit.settle()
    assert transport.written.index(b"/0") < transport.written.rindex(b"HTTP/1.1 ")


async def test_a_client_that_ends_right_behind_its_request_is_answered(kit) -> None:
    transport = kit.make_connection(echo)
    transport.feed(GET % 0)
    transport.protocol.eof_received()
    transport.close()  # as the loop's transport does
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"/0"


async def test_a_server_that_drains_sends_what_waits(kit) -> None:
    transport = kit.make_connection(echo)
    transport.feed(GET % 0)
    await transport.server.drain(timeout=1)
    [answer] = kit.parse_answers(transport.written)
    assert answer.body == b"/0"


async def test_what_was_never_written_to_a_lost_connection_is_known(kit) -> None:
    lost, other = kit.make_connection(echo), kit.make_connection(echo)
    coalescer = lost.server.coalescer
    coalescer.send(lost.protocol, b"never")
    coalescer.send(other.protocol, b"sent")
    assert lost.protocol.unsent
    assert other.protocol.unsent
    lost.closing = True
    coalescer.flush()
    assert other.sent == b"sent"
    assert lost.protocol.unsent
    assert not other.protocol.unsent
