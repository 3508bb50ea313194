"""What a blob server's answers mean: errors, blobs, lines of listings, as the contract has them."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

from dolmen import errors, metadata
from dolmen.errors import DolmenError, NotFound, Unavailable
from dolmen.http.calls import ClientResponse
from dolmen.http.messages import Headers
from dolmen.record import Kind
from dolmen.stamps import parse_stamp
from dolmen.store import BlobInfo, Outcome, Put
from dolmen.stores.verdict import NO_CHECKSUM

ANSWER_MAX = 64 << 20
"""The largest answer that is read whole, in bytes."""
_KINDS = {"blob": Kind.BLOB, "manifest": Kind.MANIFEST, "tombstone": Kind.TOMBSTONE}


class Unsatisfiable(DolmenError):  # noqa: N818 - as the other errors
    """The range asked for begins behind the blob's end (416)."""


async def error_of(client: str, response: ClientResponse) -> DolmenError:
    """The error an answer stands for: the one it names, else the one of its status."""
    try:
        said = json.loads(bytes(await response.body.read(65_536)) or b"{}")
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    status = response.status
    detail = f"{client}: {said.get('detail') or f'HTTP {status}'}"
    if status == 404:
        stamp = response.headers.get(b"x-dolmen-stamp")
        return NotFound(detail, stamp=parse_stamp(stamp.decode()) if stamp else 0)
    if status == 416:
        return Unsatisfiable(detail)
    if "error" in said:
        return told({"error": said["error"], "detail": detail})
    by_status = {
        400: errors.InvalidName,
        401: errors.Unauthorized,
        403: errors.Unauthorized,
        405: errors.ReadOnly,
        409: errors.Conflict,
        413: errors.TooLarge,
        422: errors.BadContent,
        500: errors.OutcomeUnknown,
        507: errors.Full,
    }
    return by_status.get(status, Unavailable)(detail)


def told(said: dict[str, Any]) -> DolmenError:
    """The error a server names in an answer."""
    kind = getattr(errors, str(said.get("error")), Unavailable)
    detail = str(said.get("detail"))
    if kind is NotFound:
        return NotFound(detail, stamp=parse_stamp(said["stamp"]) if "stamp" in said else 0)
    if isinstance(kind, type) and issubclass(kind, DolmenError):
        return kind(detail)
    return Unavailable(detail)


def put_of(line: dict[str, Any]) -> Put:
    """The answer to a write, from a line of JSON; raises the error the line names."""
    if line.get("status") == "refused":
        raise told(line)
    return Put(Outcome(line["status"]), parse_stamp(line["stamp"]))


def info_of(name: str, response: ClientResponse) -> BlobInfo:
    """What an answer's header fields tell of a blob."""
    headers = response.headers
    part = headers.get(b"content-range")
    length = headers.get(b"content-length")
    size = int(part.rpartition(b"/")[2]) if part else int(length or b"-1")
    stamp = headers.get(b"x-dolmen-stamp")
    if stamp is None:  # a plain blob server
        pairs = [(name, value) for name, value in headers if name.startswith(b"x-")]
        return BlobInfo(name, size, Kind.BLOB, 0, NO_CHECKSUM, metadata.encode(pairs))
    return BlobInfo(
        name,
        size,
        _KINDS[headers.get(b"x-dolmen-kind", b"blob").decode()],
        parse_stamp(stamp.decode()),
        _tag(headers),
        b64decode(headers.get(b"x-dolmen-metadata", b"")),
        int(headers.get(b"x-dolmen-arrived", b"0")),
    )


def _tag(headers: Headers) -> bytes:
    try:
        return bytes.fromhex(headers.get(b"etag", b"").strip(b'"').decode())
    except ValueError:
        return NO_CHECKSUM


def listed(line: dict[str, Any]) -> BlobInfo:
    """What a line of a listing tells of a blob."""
    return BlobInfo(
        line["name"],
        line["size"],
        _KINDS[line["kind"]],
        parse_stamp(line["stamp"]),
        bytes.fromhex(line["checksum"]),
        b64decode(line.get("metadata", "")),
        line.get("arrived", 0),
    )


async def object_of(response: ClientResponse) -> dict[str, Any]:
    """An answer that is one JSON object."""
    said = json.loads((await response.body.read(ANSWER_MAX)).decode() or "{}")
    return said if isinstance(said, dict) else {}


async def lines_of(response: ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The lines of an answer in JSON, as they come."""
    rest = b""
    async for piece in response.body:
        lines, newline, rest = (rest + piece).rpartition(b"\n")
        if newline:  # one array of many lines is parsed several times faster than each alone
            for line in json.loads(f"[{lines.decode().replace(chr(10), ',')}]"):
                yield line
    if rest:
        raise Unavailable("an answer broke off in the middle of a line")
