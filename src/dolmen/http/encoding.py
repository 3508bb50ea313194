"""Writing the head of a message: status lines, header lines that can't be injected into, the date.

`encode_headers`, `join_request` and `join_response` are pure functions from values to bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROLS = bytes(c for c in (*range(32), 127) if c != 9)  # RFC 9110, 5.5: in no field value
_RESERVED = frozenset(
    b"content-length transfer-encoding connection keep-alive date server host expect".split()
)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"
EXPECT = b"Expect: 100-continue\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_starts: dict[bytes, bytes] = {}  # header names that may be sent, as lines begin with them


class EncodedHeaders:
    """Header lines that need no checking any more, each ended by CRLF."""

    __slots__ = ("lines",)

    def __init__(self, lines: bytes) -> None:
        self.lines = lines

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]]) -> EncodedHeaders:
        """Headers checked and encoded once, for messages that always carry the same."""
        return cls(encode_headers(headers))


def _start(name: bytes, value: bytes) -> bytes:
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise ValueError(f"a header is a pair of bytes, not {name!r} and {value!r}")  # noqa: TRY004
    if not _TOKEN.match(name):
        raise ValueError(f"{name!r} is not a header name")
    if name.lower() in _RESERVED:
        raise ValueError(f"the header {name.decode()} is written by the HTTP layer")
    if len(_starts) < 1024:
        _starts[name] = name + b": "
    return name + b": "


def encode_headers(headers: Sequence[tuple[bytes, bytes]] | EncodedHeaders) -> bytes:
    """Headers as lines that each end in CRLF.

    Raises ValueError for a name that is no token or belongs to the layer itself, for
    what is not bytes, and for a value with control characters: a value can't begin a
    header of its own.
    """
    if isinstance(headers, EncodedHeaders):
        return headers.lines
    if not headers:
        return b""
    try:
        parts = [_starts[name] + value for name, value in headers]
    except (KeyError, TypeError):
        parts = [_start(name, value) + value for name, value in headers]
    count = len(parts)
    parts.append(b"")
    lines = b"\r\n".join(parts)
    if len(lines.translate(None, _CONTROLS)) != len(lines) - 2 * count:
        raise ValueError("a header value has control characters")
    return lines


def reason(status: int) -> str:
    """The standard phrase of a status code, or "Unknown"."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def length_line(length: int | None) -> bytes:
    """The line that frames a body of this length, or of unknown length."""
    return CHUNKED if length is None else b"Content-Length: %d\r\n" % length


def join_request(method: str, target: bytes, host: bytes, lines: bytes) -> bytes:
    """A request's head."""
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method.encode(), target, host, lines)


def join_response(start: bytes, lines: bytes, body: bytes | bytearray | memoryview) -> bytes:
    """A whole response: the start, header lines, Content-Length, and the body."""
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (start, lines, len(body), body)  # type: ignore[str-format]


def join_head(start: bytes, lines: bytes, framing: bytes) -> bytes:
    """A response's head; `framing` is the line about the length, if there is one."""
    return b"%b%b%b\r\n" % (start, lines, framing)


class ResponseStarts:
    """The first lines of responses: status line, Server and Date, made once a second each."""

    __slots__ = ("_date", "_second", "_starts")

    def __init__(self) -> None:
        self._starts: dict[int, bytes] = {}
        self._second = -1
        self._date = b""

    def set_time(self, seconds: float) -> None:
        """Take `seconds` since the epoch as the Date of responses from now on."""
        if int(seconds) != self._second:
            self._second = int(seconds)
            self._date = formatdate(self._second, usegmt=True).encode()
            self._starts.clear()

    def of(self, status: int) -> bytes:
        """Everything up to the handler's own headers."""
        start = self._starts.get(status)
        if start is None:
            phrase = reason(status).encode()
            start = b"HTTP/1.1 %d %b\r\nServer: dolmen\r\nDate: %b\r\n" % (
                status, phrase, self._date,
            )  # fmt: skip
            self._starts[status] = start
        return start
