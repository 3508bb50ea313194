"""What a handler takes and gives: `Headers`, `Request`, `Response`, or `HTTPError` in its place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl

from dolmen.errors import DolmenError, TooLarge
from dolmen.http.encoding import EncodedHeaders, reason

if TYPE_CHECKING:
    from dolmen.http.body import Body

Address = tuple[str, int] | None
Buffer = bytes | bytearray | memoryview


class Headers(dict[bytes, bytes]):
    """Received header fields by lower-case name, in order of arrival, never changed.

    Values have no surrounding white space; those of a repeated name are joined by a comma
    and a space (RFC 9110, 5.3). `meaning` is for what a handler makes of them: requests that
    bring the same lines again have the same Headers again.
    """

    meaning: object = None


class Request:
    """One request, as a handler sees it.

    `method` is as sent ("GET"), `target` is the raw path with its query (the path alone of an
    absolute-form target), `raw_path` the path before any "?", percent-encoding as sent: it begins
    with "/" (or is "*"). `peer` is the client's (host, port), None on a Unix socket. `state` is
    the handlers' own, for example who asks.
    """

    __slots__ = ("body", "headers", "method", "peer", "raw_path", "state", "target")

    def __init__(
        self, method: str, target: bytes, headers: Headers, body: Body, peer: Address = None
    ) -> None:
        self.method = method
        self.target = target
        self.raw_path = target.partition(b"?")[0]
        self.headers = headers
        self.body = body
        self.peer = peer
        self.state: object = None

    @property
    def query(self) -> dict[str, str]:
        """The query's names and values, decoded; of a repeated name the last value."""
        text = self.target.partition(b"?")[2].decode("ascii", "surrogateescape")
        return dict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))

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


@dataclass(slots=True, eq=False)
class Streamed:
    """A `Stream` made of an async iterator and, if known, the length of what it gives."""

    _pieces: AsyncIterator[Buffer]
    length: int | None = None

    @classmethod
    def of(cls, data: Buffer) -> Streamed:
        """A large body in memory as a stream."""

        async def once() -> AsyncIterator[Buffer]:
            yield data

        return cls(once(), len(data))

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self._pieces

    async def aclose(self) -> None:
        """Close the iterator when it is an async generator."""
        await close_stream(self._pieces)


async def close_stream(stream: object) -> None:
    """Await the `aclose()` of a stream, if it has one."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


@dataclass(slots=True, eq=False)
class Response:
    """A response: a status code, headers and a body (bytes-like, or a `Stream`).

    `headers` is a sequence of (name, value) byte pairs, or an `EncodedHeaders`
    made once for many responses. Content-Length, Transfer-Encoding, Connection,
    Date and Server are the server's to write and must not be given.
    To HEAD give what GET would get: only its length is sent.
    """

    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] | EncodedHeaders = ()
    body: Buffer | Stream = field(default=b"", repr=False)


class HTTPError(DolmenError):
    """Raised by a handler (or this layer) to end a request with a problem of this status.

    `detail` is a sentence the client's user can act on; it is sent to the client.
    """

    def __init__(
        self, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class BodyTooLarge(HTTPError, TooLarge):  # noqa: N818 - as in dolmen.errors
    """A body went beyond the limit its reader gave; 413 when nobody catches it."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The body is larger than the {limit} bytes allowed here.")


def problem(
    status: int, detail: str, *, headers: Sequence[tuple[bytes, bytes]] = (), **members: object
) -> Response:
    """A problem (RFC 9457): type "about:blank", title, status, detail, and any extra members."""
    title = reason(status)
    value = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    lines = [(b"Content-Type", b"application/problem+json"), *headers]
    text = json.dumps(value, ensure_ascii=False) + "\n"  # as a person reads it in a terminal
    return Response(status, lines, text.encode("utf-8", "replace"))


Handler = Callable[[Request], Response | Awaitable[Response]]
"""Returns a response, or an awaitable when it must wait. A coroutine is begun outside any task and
in the connection's own context: one that needs `asyncio.timeout`, a `TaskGroup`, `current_task()`
or context variables of its own awaits `asyncio.sleep(0)` first, after which it runs in a task."""
Observer = Callable[[Request | None, int, int, float], None]
"""Called after each response: the request (None when it could not be parsed), the status,
the bytes of its body that were sent, and the seconds since the request's head was read."""
