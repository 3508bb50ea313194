"""What a blob server's answers mean: errors, blobs, lines of listings, as the contract has them.

An answer that makes no sense is `Unavailable` to who reads and `OutcomeUnknown` to who
writes: the server may be of another kind or version, or something stands in between.
"""

from __future__ import annotations

import functools
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from dolmen import errors, metadata
from dolmen.errors import DolmenError, InvalidName, NotFound, OutcomeUnknown, Unavailable
from dolmen.http.client_connection import ClientResponse
from dolmen.http.messages import Headers
from dolmen.names import check_name
from dolmen.record import Kind
from dolmen.stamps import parse_stamp
from dolmen.store import BlobInfo, Failed, Outcome, Put
from dolmen.stores.verdict import NO_CHECKSUM

ANSWER_MAX = 64 << 20
"""The largest answer that is read whole, in bytes."""
_KINDS = {"blob": Kind.BLOB, "manifest": Kind.MANIFEST, "tombstone": Kind.TOMBSTONE}
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidName)

P = ParamSpec("P")
T = TypeVar("T")


def senseless(error: object, *, reads: bool) -> DolmenError:
    """The error for an answer that makes no sense."""
    kind = Unavailable if reads else OutcomeUnknown
    return kind(f"an answer makes no sense ({error!r:.200}): is this a dolmen blob server?")


def _sense(*, reads: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function that reads an answer raise the error for one that makes no sense."""

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def sensible(*arguments: P.args, **options: P.kwargs) -> T:
            try:
                return function(*arguments, **options)
            except _NONSENSE as error:
                raise senseless(error, reads=reads) from error

        return sensible

    return wrap


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
        return NotFound(detail, stamp=_stamp(stamp.decode("latin-1")) if stamp else 0)
    if status == 416:
        return Unsatisfiable(detail)
    named = said.get("error") or response.headers.get(b"x-dolmen-error", b"").decode("latin-1")
    if named:
        return told({"error": named, "detail": detail})
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
        return NotFound(detail, stamp=_stamp(said["stamp"]) if "stamp" in said else 0)
    if isinstance(kind, type) and issubclass(kind, DolmenError):
        return kind(detail)
    return Unavailable(detail)


@_sense(reads=True)
def _stamp(text: str) -> int:
    return parse_stamp(text)


def put_of(name: str, line: dict[str, Any]) -> Put | Failed:
    """The answer to a write of this name, from a line of JSON.

    A line without a name says why those that were not reached failed.
    """
    try:
        if line["name"] not in (name, ""):
            raise ValueError(line["name"])
        if line["status"] == "refused":
            return Failed(name, told(line))
        return Put(Outcome(line["status"]), parse_stamp(line["stamp"]))
    except _NONSENSE as error:
        return Failed(name, senseless(error, reads=False))


@_sense(reads=False)
def puts_of(line: dict[str, Any], sent: Sequence[BlobInfo], begin: int) -> Sequence[Put | Failed]:
    """What a line says of the blobs of a stream, from `begin` on.

    With a `count` it tells of so many that all went the same way, with the stamps they
    carry; else of one.
    """
    if "count" not in line:
        return [put_of(info.name, line) for info in sent[begin : begin + 1]]
    outcome, count = Outcome(line["status"]), line["count"]
    if type(count) is not int or not 0 < count <= len(sent) - begin:
        raise ValueError(count)
    return [Put(outcome, info.stamp) for info in sent[begin : begin + count]]


@_sense(reads=False)
def stored(status: int, said: dict[str, Any]) -> Put:
    """The answer to a single put."""
    if said["status"] == "superseded":
        outcome = Outcome.SUPERSEDED
    else:
        outcome = Outcome.CREATED if status == 201 else Outcome.UNCHANGED
    return Put(outcome, parse_stamp(said["stamp"]))


@_sense(reads=False)
def deleted(headers: Headers, said: dict[str, Any]) -> Put:
    """The answer to a single delete: in header fields, or when something newer stands, in JSON."""
    if said:
        return Put(Outcome.SUPERSEDED, parse_stamp(said["stamp"]))
    status = headers.get(b"x-dolmen-status", b"").decode()
    return Put(Outcome(status), parse_stamp(headers.get(b"x-dolmen-stamp", b"").decode()))


@_sense(reads=True)
def info_of(name: str, response: ClientResponse) -> BlobInfo:
    """What an answer's header fields tell of a blob."""
    headers = response.headers
    part = headers.get(b"content-range")
    length = headers.get(b"content-length")
    size = int(part.rpartition(b"/")[2]) if part else int(length or b"-1")
    stamp = headers.get(b"x-dolmen-stamp")
    if stamp is None:  # a plain blob server
        pairs = [(name, value) for name, value in headers.items() if name.startswith(b"x-")]
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


@_sense(reads=True)
def listed(line: dict[str, Any]) -> BlobInfo:
    """What a line of a listing tells of a blob."""
    return BlobInfo(
        check_name(line["name"]),
        int(line["size"]),
        _KINDS[line["kind"]],
        parse_stamp(line["stamp"]),
        bytes.fromhex(line["checksum"]),
        b64decode(line["metadata"], validate=True) if "metadata" in line else b"",
        int(line["arrived"]),
    )


@_sense(reads=True)
def names_of(body: bytes) -> set[str]:
    """The names a plain blob server lists."""
    names = json.loads(body)
    if type(names) is not list:
        raise TypeError(type(names))
    for name in names:
        name.encode()  # whether it may be one, who uses it says
    return set(names)


@_sense(reads=True)
def notes_of(said: dict[str, Any]) -> dict[str, bytes]:
    """The notes of a server."""
    return {key: b64decode(value) for key, value in said.items()}


async def object_of(response: ClientResponse, *, reads: bool = True) -> dict[str, Any]:
    """An answer that is one JSON object."""
    body = await response.body.read(ANSWER_MAX)
    try:
        said = json.loads(str(body or b"{}", "utf-8"))  # bytes would be searched for their encoding
        if type(said) is not dict:
            raise TypeError(type(said))
    except _NONSENSE as error:
        raise senseless(error, reads=reads) from error
    return said


async def lines_of(response: ClientResponse, *, reads: bool) -> AsyncIterator[dict[str, Any]]:
    """The lines of an answer, a JSON object each, as they come."""
    rest = b""
    async for piece in response.body:
        lines, newline, rest = (rest + piece).rpartition(b"\n")
        if newline:
            try:
                # One array of many lines is parsed several times faster than each alone.
                objects = json.loads(b"[" + lines.replace(b"\n", b",") + b"]")
                if not all(type(line) is dict for line in objects):
                    raise TypeError(objects)
            except _NONSENSE as error:
                raise senseless(error, reads=reads) from error
            for line in objects:
                yield line
    if rest:
        raise senseless("it breaks off in the middle of a line", reads=reads)
