"""What a request shows of itself."""

from __future__ import annotations

from dolmen.http import NO_BODY, Headers, Request


def request(target: bytes) -> Request:
    return Request("GET", target, Headers(), NO_BODY)


def test_paths_and_queries() -> None:
    asked = request(b"/a%20b/%C3%A4?x=1&y=%20+z&x=2&empty=&flag")
    assert asked.raw_path == b"/a%20b/%C3%A4"
    assert asked.query == {"x": "2", "y": "  z", "empty": "", "flag": ""}
    assert request(b"/plain").query == {}
