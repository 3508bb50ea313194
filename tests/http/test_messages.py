"""What a request shows of itself."""

from __future__ import annotations

from dolmen.http import NO_BODY, Headers, Request


def request(target: bytes) -> Request:
    return Request("GET", target, Headers(), NO_BODY)


def test_headers() -> None:
    headers = Headers(b"\r\nHost: a\r\nX-A: 1\r\nx-a:2 \r\nEmpty:\r\n\r\n")
    assert list(headers) == [(b"host", b"a"), (b"x-a", b"1"), (b"x-a", b"2"), (b"empty", b"")]
    assert headers.get(b"x-a") == b"1, 2"
    assert headers.get_all(b"x-a") == [b"1", b"2"]
    assert headers.get(b"empty") == b""
    assert headers.get(b"none") is None
    assert headers.get(b"none", b"x") == b"x"
    assert b"host" in headers
    assert b"none" not in headers
    assert len(headers) == 4
    assert len(Headers()) == 0


def test_paths_and_queries() -> None:
    asked = request(b"/a%20b/%C3%A4?x=1&y=%20+z&x=2&empty=&flag")
    assert asked.raw_path == b"/a%20b/%C3%A4"
    assert asked.query == {"x": "2", "y": "  z", "empty": "", "flag": ""}
    assert request(b"/plain").query == {}
