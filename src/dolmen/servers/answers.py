"""What both servers answer with: JSON, blobs or parts of them, and errors as status codes.

Read first: `dolmen.errors`, `dolmen.http.messages`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from dolmen import errors
from dolmen.http import EncodedHeaders, Request, Response, Streamed, problem
from dolmen.http.conditional import byte_range, not_modified, range_applies
from dolmen.http.messages import Buffer
from dolmen.payload import Piece
from dolmen.servers.fields import modified
from dolmen.stamps import format_stamp
from dolmen.store import Blob, BlobInfo, Range

_STATUS: list[tuple[type[errors.DolmenError], int]] = [
    (errors.InvalidName, 400),
    (errors.BadContent, 422),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Outdated, 409),
    (errors.TooLarge, 413),
    (errors.Unauthorized, 401),
    (errors.Full, 507),
    (errors.ReadOnly, 503),
    (errors.Corrupt, 503),
    (errors.Unavailable, 503),
    (errors.OutcomeUnknown, 500),
    (errors.NoCopies, 500),
]
_TYPE = (b"Content-Type", b"application/json")
JSON = EncodedHeaders.of([_TYPE])
VOLATILE = (b"X-Dolmen-Durable", b"no")
"""Sent with the answer to a write to a store where it would not survive a power cut."""
VOLATILE_JSON = EncodedHeaders.of([_TYPE, VOLATILE])


def status_of(error: errors.DolmenError) -> int:
    """The status code that stands for an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def refusal(error: errors.DolmenError) -> Response:
    """The answer to a request that failed with this error.

    `error` in the problem names the class, so a client that is a store itself can
    raise the same again; a header names it as well, for HEAD, whose answer has no body.
    """
    status, name = status_of(error), type(error).__name__
    headers: list[tuple[bytes, bytes]] = [(b"X-Dolmen-Error", name.encode())]
    if isinstance(error, errors.NotFound) and error.stamp:
        headers.append((b"X-Dolmen-Stamp", format_stamp(error.stamp).encode()))
        headers.append((b"X-Dolmen-Kind", b"tombstone"))
    if status == 503:
        headers.append((b"Retry-After", b"5"))
    if isinstance(error, errors.NoCopies):
        servers = [f"{server}: {why}" for server, why in error.failures]
        return problem(status, str(error), headers=headers, error=name, servers=servers)
    return problem(status, str(error), headers=headers, error=name)


def answer(
    value: object, status: int = 200, *, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Response:
    """A JSON answer, ended by a line feed so that it reads well in a terminal."""
    body = json.dumps(value).encode() + b"\n"
    return Response(status, [_TYPE, *headers] if headers else JSON, body)


def body_of(blob: Blob) -> Buffer | Streamed:
    """The body of an answer with this blob."""
    payload = blob.payload
    whole = payload.whole
    return whole if whole is not None else Streamed(aiter(payload), payload.size)


async def selected(
    request: Request,
    stat: Callable[[], Awaitable[BlobInfo]],
    get: Callable[[Range | None], Awaitable[Blob]],
    tag_of: Callable[[BlobInfo], bytes],
    described: Callable[[BlobInfo, Range | None], EncodedHeaders],
) -> Response:
    """Answer HEAD, or GET under a condition or of a range. The entity tag is `tag_of` a blob."""
    headers = request.headers
    while True:
        info = await stat()
        tag = tag_of(info)
        if not_modified(headers, tag, modified(info)):
            return Response(304, described(info, None))
        if request.method == "HEAD":
            return Response(200, described(info, None), _Nothing(info.size))
        part = byte_range(headers.get(b"range"), info.size) if range_applies(headers, tag) else None
        blob = await get(part)
        if tag_of(blob.info) == tag:  # else it was replaced meanwhile: none of this was about it
            return Response(200 if part is None else 206, described(blob.info, part), body_of(blob))


class _Nothing:
    """The body of an answer to HEAD: a length without bytes."""

    def __init__(self, length: int) -> None:
        self.length = length

    async def __aiter__(self) -> AsyncIterator[Piece]:
        raise AssertionError("HEAD has no body")
        yield b""
