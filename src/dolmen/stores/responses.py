"""Asking a blob server over HTTP, and what its response means: an error, a blob's facts, JSON.

Read first: `dolmen.http.client`.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dolmen.errors import DolmenError, InvalidName, NotFound, ReadOnly, Unavailable, from_text
from dolmen.http import Body, Client, ClientResponse, Headers, Streamed
from dolmen.payload import Bytes, Payload, Stream, to_the_end
from dolmen.record import Kind
from dolmen.stamps import parse_stamp
from dolmen.store import BlobInfo, Capabilities

ANSWER_MAX = 64 << 20
"""The largest answer that is read whole, in bytes."""
NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, DolmenError)
"""What reading an answer raises that is not of the agreed form."""
_KINDS = {b"blob": Kind.BLOB, b"manifest": Kind.MANIFEST, b"tombstone": Kind.TOMBSTONE}
_EXPECTED = Capabilities(durable=True, largest=1 << 44, digests=True, ordered=True, conflicts=True)
"""Taken for true of a server that could not be asked yet; it is before anything else is."""
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


async def ask(
    client: Client,
    address: str,
    method: str,
    target: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes | memoryview | Streamed | None = None,
    *,
    reads: bool | None = None,
) -> ClientResponse:
    """The response to a request; raises the error that a status of 400 or above stands for.

    What is streamed is sent once the server asks for it.
    """
    waits = isinstance(body, Streamed)
    response = await client.request(
        method, target, headers, body, expect_continue=waits, reads=reads
    )
    if response.status >= 400:
        raise await error_of(address, response)
    return response


def body_of(payload: Payload) -> bytes | memoryview | Streamed:
    """A payload as the body of a request."""
    whole = payload.whole
    return whole if whole is not None else Streamed(to_the_end(payload), payload.size)


def payload_of(address: str, body: Body) -> Payload:
    """The body of a response as a payload. Raises `Unavailable` where its length is not known."""
    if body.whole is not None:
        return Bytes(body.whole)
    if body.length is None:
        raise Unavailable(f"{address} does not say how long its answer is")
    return Stream(body.length, lambda: aiter(body), rereadable=False, fill=body.receive_into)


def senseless(address: str, error: Exception, kind: type[DolmenError]) -> DolmenError:
    """The error, of this kind, for an answer that is not of the agreed form."""
    return kind(f"an answer of {address} makes no sense ({error!r:.200}): is this a dolmen server?")


async def error_of(address: str, response: ClientResponse) -> DolmenError:
    """The error that a response of status 400 or above stands for."""
    status = response.status
    text = bytes(await response.body.read(65_536)).decode("utf-8", "replace")
    try:
        detail = json.loads(text).get("detail")
    except (ValueError, AttributeError, RecursionError):
        detail = text.strip()[:200]  # what a plain sos server says
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


class Asked:
    """A server at an address that is asked what it is before anything else.

    `is_other` is called when it turns out to be no dolmen blob server.
    """

    def __init__(self, address: str, client: Client, is_other: Callable[[], None]) -> None:
        self.address = address
        self._client = client
        self._is_other = is_other
        self.capabilities = _EXPECTED
        self._known = False

    async def learn(self) -> bool:
        """Ask what the server is; False for one that is no dolmen blob server.

        Raises `Unavailable` where it can't be asked.
        """
        try:
            response = await ask(self._client, self.address, "GET", "/status")
        except (NotFound, ReadOnly):  # 404, 405
            self._is_other()
            return False
        try:
            said = await object_of(self.address, response, Unavailable)
            self.capabilities, self._known = Capabilities(**said["capabilities"]), True
        except (KeyError, TypeError) as error:
            raise Unavailable(f"{self.address} does not say what it keeps: {error}") from error
        return True

    async def _order(self, target: str, order: dict[str, Any]) -> ClientResponse:
        """Ask for something that reads, described in JSON."""
        return await self._ask("POST", target, (), json.dumps(order).encode(), reads=True)

    async def _ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | memoryview | Streamed | None = None,
        *,
        reads: bool | None = None,
    ) -> ClientResponse:
        if not self._known and not await self.learn():
            raise Unavailable(f"{self.address} is a plain sos blob server, as it now says")
        return await ask(self._client, self.address, method, target, headers, body, reads=reads)

    def _learn_durable(self, response: ClientResponse) -> None:
        durable = response.headers.get(b"x-dolmen-durable") != b"no"
        if durable is not self.capabilities.durable:
            self.capabilities = replace(self.capabilities, durable=durable)
