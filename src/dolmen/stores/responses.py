"""What a dolmen server's HTTP response means: the error, a blob's facts, or JSON."""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import suppress
from typing import Any

from dolmen.errors import DolmenError, InvalidName, NotFound, Unavailable, from_text
from dolmen.http import ClientResponse, Headers
from dolmen.record import Kind
from dolmen.stamps import parse_stamp
from dolmen.store import BlobInfo

ANSWER_MAX = 64 << 20
"""The largest answer that is read whole, in bytes."""
NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, DolmenError)
"""What reading an answer raises that is not of the agreed form."""
_KINDS = {b"blob": Kind.BLOB, b"manifest": Kind.MANIFEST, b"tombstone": Kind.TOMBSTONE}
_BY_STATUS = {
    400: "InvalidName",
    401: "Unauthorized",
    403: "Unauthorized",
    405: "ReadOnly",
    409: "Conflict",
    413: "TooLarge",
    422: "BadContent",
    500: "OutcomeUnknown",
    507: "Full",
}


class Unsatisfiable(DolmenError):  # noqa: N818 - as the other errors
    """The range asked for begins behind the blob's end (416)."""


def senseless(address: str, error: Exception, kind: type[DolmenError]) -> DolmenError:
    """The error, of this kind, for an answer that is not of the agreed form."""
    return kind(f"an answer of {address} makes no sense ({error!r:.200}): is this a dolmen server?")


async def error_of(address: str, response: ClientResponse) -> DolmenError:
    """The error that a response of status 400 or above stands for."""
    try:
        said = json.loads(bytes(await response.body.read(65_536)) or b"{}")
    except (ValueError, RecursionError):
        said = {}
    status = response.status
    detail = said.get("detail") if isinstance(said, dict) else None
    message = f"{address}: {detail or f'HTTP {status}'}"
    if status == 416:
        return Unsatisfiable(message)
    if status == 404:
        stamp = 0
        with suppress(InvalidName):
            stamp = parse_stamp(response.headers.get(b"x-dolmen-stamp", b"").decode("latin-1"))
        return NotFound(message, stamp=stamp)
    named = response.headers.get(b"x-dolmen-error", b"").decode("latin-1")
    return from_text(f"{named or _BY_STATUS.get(status, '')}\n{message}")


async def object_of(
    address: str, response: ClientResponse, kind: type[DolmenError]
) -> dict[str, Any]:
    """An answer that is one JSON object; raises `kind` for anything else."""
    body = await response.body.read(ANSWER_MAX)
    try:
        said = json.loads(str(body, "utf-8"))  # bytes would be searched for their encoding
        if type(said) is not dict:
            raise TypeError(type(said))
    except NONSENSE as error:
        raise senseless(address, error, kind) from error
    return said


def info_of(address: str, name: str, headers: Headers) -> BlobInfo:
    """What an answer's header fields say of a blob; raises `Unavailable` for anything else."""
    try:
        part = headers.get(b"content-range")
        return BlobInfo(
            name,
            int(part.rpartition(b"/")[2] if part else headers[b"content-length"]),
            _KINDS[headers.get(b"x-dolmen-kind", b"")],
            parse_stamp(headers[b"x-dolmen-stamp"].decode()),
            bytes.fromhex(headers[b"etag"].strip(b'"').decode()),
            b64decode(headers.get(b"x-dolmen-metadata", b""), validate=True),
            int(headers[b"x-dolmen-arrived"]),
        )
    except NONSENSE as error:
        raise senseless(address, error, Unavailable) from error
