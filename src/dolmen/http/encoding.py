"""Message heads as bytes: status lines, header lines that cannot be injected into, the date."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import formatdate

from dolmen.http.problems import reason

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROLS = bytes(c for c in (*range(32), 127) if c != 9)  # RFC 9110, 5.5: in no field value
_RESERVED = frozenset(
    b"content-length transfer-encoding connection keep-alive date server host expect".split()
)
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


def _line(name: bytes, value: bytes) -> bytes:
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise ValueError(f"a header is a pair of bytes, not {name!r} and {value!r}")  # noqa: TRY004
    start = _starts.get(name)
    if start is None:
        if not _TOKEN.match(name):
            raise ValueError(f"{name!r} is not a header name")
        if name.lower() in _RESERVED:
            raise ValueError(f"the header {name.decode()} is written by the HTTP layer")
        start = name + b": "
        if len(_starts) < 1024:
            _starts[name] = start
    return start + value


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
        parts = [_line(name, value) for name, value in headers]
    count = len(parts)
    parts.append(b"")
    lines = b"\r\n".join(parts)
    if len(lines.translate(None, _CONTROLS)) != len(lines) - 2 * count:
        raise ValueError("a header value has control characters")
    return lines


class Heads:
    """The first lines of answers: status line, Server and Date, made once a second each."""

    __slots__ = ("_date", "_second", "_starts")

    def __init__(self) -> None:
        self._starts: dict[int, bytes] = {}
        self._second = -1
        self._date = b""

    def set_time(self, seconds: float) -> None:
        """Take `seconds` since the epoch as the Date of answers from now on."""
        if int(seconds) != self._second:
            self._second = int(seconds)
            self._date = formatdate(self._second, usegmt=True).encode()
            self._starts.clear()

    def start(self, status: int) -> bytes:
        """Everything up to the handler's own headers."""
        start = self._starts.get(status)
        if start is None:
            start = b"HTTP/1.1 %d %b\r\nServer: dolmen\r\nDate: %b\r\n" % (
                status,
                reason(status).encode(),
                self._date,
            )
            self._starts[status] = start
        return start
