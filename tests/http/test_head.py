"""The head reader: strict, the same for known and unknown lines, never more lenient than llhttp."""

from __future__ import annotations

import time

import pytest
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dolmen.http.head import (
    Head,
    may_begin,
    read_headers,
    read_request,
    read_status_line,
    recognize,
)
from dolmen.http.limits import Limits
from dolmen.http.messages import HTTPError

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(b"Host: a", b"host: b:80", b"Content-Length: 5", b"Content-Length: 05", b"A: b"),
                *(b"Content-Length: 5, 5", b"Content-Length: +5", b"Content-Length:", b" folded"),
                *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"A : b"),
                *(b"Transfer-Encoding: chunked, x", b"transfer-encoding:\tChunked ", b"nameless"),
                *(b"Connection: close", b"Connection: keep-alive, x", b"A: b\rc", b"A: b\nC: d"),
                *(b": empty", b"A:\x00", b"A: \xff", b"Expect: 100-continue", b"\tA: b"),
                b"A\x80: b",
            ]
        ),
        st.binary(max_size=12),
    ),
    max_size=5,
)
STARTS = st.sampled_from(
    [
        *(b"GET / HTTP/1.1", b"POST /x?y HTTP/1.1", b"GET / HTTP/1.0", b"PUT http://a/ HTTP/1.1"),
        *(b"GET /  HTTP/1.1", b"GET /\x01 HTTP/1.1", b"get / HTTP/1.1", b"GET / HTTP/1.1 "),
        *(b"GET /a b HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET / HTTP/1.2", b"GET /", b""),
    ]
)
STATUSES = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK", b"HTTP/1.0 404 Not Found", b"HTTP/1.1 204 ", b"HTTP/1.1 200"),
        *(b"HTTP/1.1  200 OK", b"HTTP/2.0 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b""),
        *(b"HTTP/1.1 200 O\x00K", b"http/1.1 200 OK", b"ICY 200 OK", b"HTTP/1.1\t200 OK"),
    ]
)


class Heard:
    """What llhttp reports. Whether to keep the connection is asked at the end of the head: llhttp
    forgets it with the end of the message."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.keep_alive = False
        self.parser: HttpRequestParser | HttpResponseParser

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()


def joined(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for name, value in pairs:
        fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def head_of(start: bytes, lines: list[bytes]) -> tuple[bytes, bytes, bytes]:
    """The bytes of a head up to its first empty line, its first line, and the block behind it."""
    data = b"".join(line + b"\r\n" for line in [start, *lines]) + b"\r\n"
    data = data[: data.find(b"\r\n\r\n") + 4]
    at = data.find(b"\r\n")
    return data, data[:at], data[at:]


def known_statuses(error: HTTPError) -> None:
    assert error.status in (400, 417, 501, 505)


@settings(max_examples=500)
@given(STARTS, LINES)
@example(b"GET / HTTP/1.1", [b"Host: a", b"Connection: close"])
def test_no_request_is_accepted_that_llhttp_refuses(start: bytes, lines: list[bytes]) -> None:
    data, _, block = head_of(start, lines)
    try:
        *_, head, _ = read_request(data, Limits(), {})
        fields = dict(read_headers(block, {}))
    except HTTPError as error:
        known_statuses(error)
        return
    heard = Heard()
    parser = heard.parser = HttpRequestParser(heard)
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        pass
    except HttpParserError as error:
        raise AssertionError(f"llhttp refuses {data!r}: {error}") from error
    assert heard.complete
    assert joined(heard.headers) == fields
    assert head.keep_alive == heard.keep_alive or not head.http11


@settings(max_examples=500)
@given(STATUSES, LINES)
def test_no_response_is_accepted_that_llhttp_refuses(start: bytes, lines: list[bytes]) -> None:
    data, line, block = head_of(start, lines)
    try:
        status, http11 = read_status_line(line)
        headers = read_headers(block, {})
        Head(headers, http11=http11)
    except HTTPError:
        return
    heard = Heard()
    parser = heard.parser = HttpResponseParser(heard)
    parser.feed_data(data)
    assert heard.complete
    assert joined(heard.headers) == headers
    assert parser.get_status_code() == status


@settings(max_examples=300)
@given(STARTS, LINES)
def test_what_was_read_before_is_read_the_same_again(start: bytes, lines: list[bytes]) -> None:
    data, line, block = head_of(start, lines)
    known: dict[bytes, tuple[bytes, bytes]] = {}
    results: list[object] = []
    for _ in range(2):
        try:
            results.append(list(read_headers(block, known).items()))
        except HTTPError as error:
            results.append(error.detail)
    assert results[0] == results[1]
    found = recognize(data + b"body", block)
    if found is not None:
        method, target, end = found
        assert line.split() == [method.encode(), target, b"HTTP/1.1"]
        assert end == len(data)


def test_headers_by_lower_case_name_with_repeated_ones_joined() -> None:
    headers = read_headers(b"\r\nHost: a\r\nX-A: 1\r\nx-a:2 \r\nEmpty:\r\n\r\n", {})
    assert list(headers.items()) == [(b"host", b"a"), (b"x-a", b"1, 2"), (b"empty", b"")]
    assert read_headers(b"\r\n\r\n", {}) == {}


def test_what_is_kept_of_lines_that_never_come_again_is_bounded() -> None:
    lines: dict[bytes, tuple[bytes, bytes]] = {}
    for n in range(3000):
        read_headers(b"\r\nA: %d\r\n\r\n" % n, lines)
    read_headers(b"\r\nA: " + b"x" * 5000 + b"\r\n\r\n", lines)
    assert len(lines) <= 1024
    assert max(map(len, lines)) < 300


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (b"GET / HTTP/1.1\r\nHost: a", True),
        (b"GET / HTTP/1.1\r", True),
        (b"GET / HTTP/1.1\r\n\r", True),
        (b"GET / HTTP/1.1\nHost", False),
        (b"GET / HTTP/1.1\rHost", False),
        (b"\x16\x03\x01\x02\x00\x01", False),
        (b"GET /\x00", False),
        (b"GET /\xff", True),
    ],
)
def test_what_can_not_become_a_head_shows_at_once(data: bytes, good: bool) -> None:
    assert may_begin(data, 0) is good
    assert all(may_begin(data[:end], end - 1) for end in range(1, len(data) + 1)) is good


def test_reading_takes_linear_time() -> None:
    """No input makes a pattern go back over what it has read."""
    size = 30_000
    limits = Limits(request_line=1 << 20, header_size=1 << 20, header_count=1 << 20)

    def request(data: bytes) -> object:
        return read_request(data[2:], limits, {})

    begun = time.process_time()
    for text in (b"a" * size, b"a: " + b" " * size, b"\r\n" * (size // 2), b"a\r\n" * (size // 3)):
        for end in (b"\x00", b"\r", b"\n"):
            may_begin(text + end, 0)
            for read in (request, read_status_line, lambda line: read_headers(line, {})):
                with pytest.raises(HTTPError):
                    read(b"\r\n" + text + end + b"\r\n\r\n")
    assert time.process_time() - begun < 2
