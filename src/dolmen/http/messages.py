"""What a handler takes and gives: `Headers`, `Request` and `Response`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, overload
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from dolmen.http.body import Body
    from dolmen.http.encoding import EncodedHeaders

Address = tuple[str, int] | None
Buffer = bytes | bytearray | memoryview


class Headers:
    """Received header fields, read-only; names are lower case, in order of arrival.

    Made from the raw header lines (each ended by CRLF), which are only taken
    apart when somebody looks. Values have no surrounding white space. `meaning` is
    for what a handler makes of them: a connection that brings the same lines again
    has the same Headers again.
    """

    __slots__ = ("_first", "_lines", "_pairs", "meaning")

    def __init__(self, lines: bytes = b"") -> None:
        self._lines = lines
        self._pairs: list[tuple[bytes, bytes]] | None = None
        self._first: dict[bytes, bytes] | None = None
        self.meaning: object = None

    def _split(self) -> list[tuple[bytes, bytes]]:
        pairs = []
        for line in self._lines.split(b"\r\n"):
            if line:
                name, _, value = line.partition(b":")
                pairs.append((name.lower(), value.strip(b" \t")))
        self._pairs = pairs
        return pairs

    def _joined(self) -> dict[bytes, bytes]:
        joined: dict[bytes, bytes] = {}
        for line in self._lines.split(b"\r\n"):
            if line:
                raw, _, value = line.partition(b":")
                name, value = raw.lower(), value.strip(b" \t")
                joined[name] = joined[name] + b", " + value if name in joined else value
        self._first = joined
        return joined

    @overload
    def get(self, name: bytes) -> bytes | None: ...
    @overload
    def get(self, name: bytes, default: bytes) -> bytes: ...
    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:
        """The value under this lower-case name; several are joined by a comma and a space."""
        joined = self._first
        return (self._joined() if joined is None else joined).get(name, default)

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value under this lower-case name, in order of arrival."""
        return [value for known, value in self if known == name]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every pair."""
        return iter(self)

    def __getitem__(self, name: bytes) -> bytes:
        joined = self._first
        return (self._joined() if joined is None else joined)[name]

    def __contains__(self, name: bytes) -> bool:
        joined = self._first
        return name in (self._joined() if joined is None else joined)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        pairs = self._pairs
        return iter(self._split() if pairs is None else pairs)

    def __len__(self) -> int:
        pairs = self._pairs
        return len(self._split() if pairs is None else pairs)

    def __repr__(self) -> str:
        return f"Headers({list(self)!r})"


class Request:
    """One request, as a handler sees it.

    `method` is as sent ("GET"), `target` is the raw path with its query (the
    path alone of an absolute-form target), `peer` the client's (host, port) or
    None on a Unix socket. `state` is the handlers' own, for example who asks.
    """

    __slots__ = ("_query", "body", "headers", "method", "peer", "state", "target")

    def __init__(
        self, method: str, target: bytes, headers: Headers, body: Body, peer: Address = None
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.peer = peer
        self.state: object = None
        self._query: dict[str, str] | None = None

    @property
    def raw_path(self) -> bytes:
        """The path before any "?", percent-encoding as sent; begins with "/" (or is "*")."""
        target = self.target
        mark = target.find(b"?")
        return target if mark < 0 else target[:mark]

    @property
    def query(self) -> dict[str, str]:
        """The query's names and values, decoded; of a repeated name the last value."""
        query = self._query
        if query is None:
            text = self.target.partition(b"?")[2].decode("ascii", "surrogateescape")
            pairs = parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
            self._query = query = dict(pairs)
        return query

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target!r}>"


class Stream(Protocol):
    """A body that is produced while it is sent.

    Iterating gives buffers; each must stay unchanged for as long as anybody holds it
    or a view of it, as the socket may. When `length` is known exactly that many bytes
    must come. An `aclose()` coroutine, if there is one, is awaited once, always:
    also when the stream was never iterated (HEAD, a client that went away).
    """

    @property
    def length(self) -> int | None:
        """Bytes in all, or None when not known beforehand (sent chunked)."""

    def __aiter__(self) -> AsyncIterator[Buffer]:
        """Give the body's buffers in order."""


class Streamed:
    """A `Stream` made of an async iterator and, if known, the length of what it gives."""

    __slots__ = ("_pieces", "length")

    def __init__(self, pieces: AsyncIterator[Buffer], length: int | None = None) -> None:
        self._pieces = pieces
        self.length = length

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self._pieces

    async def aclose(self) -> None:
        """Close the iterator when it is an async generator."""
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


class Response:
    """An answer: a status code, headers and a body (bytes-like, or a `Stream`).

    `headers` is a sequence of (name, value) byte pairs, or an `EncodedHeaders`
    made once for many answers. Content-Length, Transfer-Encoding, Connection,
    Date and Server are the server's to write and must not be given.
    To HEAD give what GET would get: only its length is sent.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] | EncodedHeaders = (),
        body: Buffer | Stream = b"",
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<Response {self.status}>"
