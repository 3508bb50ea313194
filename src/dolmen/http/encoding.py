"""Writing the head of a message: header lines that can't be injected into, lengths, the date."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROLS = bytes(c for c in (*range(32), 127) if c != 9)  # RFC 9110, 5.5: in no field value
_RESERVED = frozenset(
    b"content-length transfer-encoding connection keep-alive date server host expect".split()
)
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
_HTTP2_DETAIL = b"HTTP/2 is not supported here; use HTTP/1.1 (curl --http1.1).\n"
HTTP2_REFUSAL = b"".join(
    (
        b"\0\0\0\4\0\0\0\0\0",  # SETTINGS
        b"\0\0\1\1\4\0\0\0\1\x8c",  # HEADERS of stream 1: status 400
        b"\0\0%c\0\1\0\0\0\1%b" % (len(_HTTP2_DETAIL), _HTTP2_DETAIL),  # DATA, its end
        b"\0\0\10\7\0\0\0\0\0\0\0\0\1\0\0\0\15",  # GOAWAY: HTTP_1_1_REQUIRED
    )
)
"""400 and a sentence for a client that speaks HTTP/2 without asking first (RFC 9113, 3.3)."""
_starts: dict[bytes, bytes] = {}  # header names that may be sent, as lines begin with them


@dataclass(slots=True, eq=False)
class EncodedHeaders:
    """Header lines that need no checking any more, each ended by CRLF."""

    lines: bytes

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


def connection_line(*, keep: bool, http11: bool) -> bytes:
    """The line that says whether the connection is kept, where it need be said."""
    if not keep:
        return b"Connection: close\r\n"
    return b"" if http11 else b"Connection: keep-alive\r\n"


def length_line(length: int | None) -> bytes:
    """The line that frames a body of this length, or of unknown length."""
    if length is None:
        return b"Transfer-Encoding: chunked\r\n"
    return b"Content-Length: %d\r\n" % length


def response_start(status: int) -> bytes:
    """A response's status line, Server and Date."""
    return b"HTTP/1.1 %d %b\r\nServer: dolmen\r\nDate: %b\r\n" % (
        status, reason(status).encode(), formatdate(usegmt=True).encode(),
    )  # fmt: skip
