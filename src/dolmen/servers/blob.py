"""The blob server: an HTTP front on one blob store.

It speaks what an sos blob server speaks (`POST`, `GET`, `HEAD /blob/{name}`, `GET
/blobs`, `GET /alive`) and beside it everything a store of the contract can do, so
that `dolmen.stores.remote` is the same store again. `docs/wire-api.md` lists the
routes.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

import dolmen
from dolmen import metadata
from dolmen.errors import BadContent, DolmenError, NotFound
from dolmen.http.conditional import not_modified, range_applies
from dolmen.http.encoding import EncodedHeaders
from dolmen.http.messages import Buffer, Request, Response, Streamed
from dolmen.http.problems import HTTPError
from dolmen.http.ranges import byte_range
from dolmen.names import PARTITIONS, check_name
from dolmen.payload import Bytes, Payload, Piece
from dolmen.record import Kind
from dolmen.servers.answers import JSON, answer, refusal
from dolmen.servers.fields import (
    Announced,
    ContentDigest,
    announced_by,
    describe,
    entity_tag,
    parse_base64,
    parse_checksum,
    stamp_of,
)
from dolmen.servers.incoming import payload_of
from dolmen.servers.routes import Routes
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, BlobStore, Failed, Outcome
from dolmen.stores import records

NDJSON = b"application/x-ndjson"
PAGE = 1000
PAGE_MAX = 100_000
_ORDER_MAX = 16 << 20
"""The largest JSON order (names to read, touch, remove, partitions to list), in bytes."""
ALIVE = Response(200, EncodedHeaders.of([(b"Content-Type", b"text/plain")]), b"alive")


class BlobServer:
    """The routes over a store. `spool_folder` takes bodies of unknown length."""

    name = "blob"

    def __init__(
        self, store: BlobStore, *, describes: str, spool_folder: str | None = None
    ) -> None:
        self._store = store
        self._describes = describes
        self._spool_folder = spool_folder
        self._started = time.time()
        routes = self.handle = Routes()
        routes.add("POST PUT", "/blob/{name}", self.put)
        routes.add("GET", "/blob/{name}", self.get)
        routes.add("DELETE", "/blob/{name}", self.delete)
        routes.add("GET", "/blobs", self.list)
        routes.add("POST", "/blobs/list", self.list_partitions)
        routes.add("POST", "/blobs/touch", self.touch)
        routes.add("POST", "/blobs/remove", self.remove)
        routes.add("GET", "/digests", self.digests)
        routes.add("POST", "/records", self.take_records)
        routes.add("POST", "/records/read", self.read_records)
        routes.add("GET", "/notes", self.notes)
        routes.add("POST", "/notes", self.note)
        routes.add("GET", "/alive", self.alive)
        routes.add("GET", "/healthz", self.healthz)
        routes.add("GET", "/readyz", self.readyz)
        routes.add("GET", "/status", self.status)
        self.listeners = (routes,)

    async def aclose(self) -> None:
        """Close the store."""
        await self._store.aclose()

    # One blob

    async def put(self, request: Request, name: str) -> Response:
        """Store a blob."""
        headers, data = request.headers, request.body.whole
        announced = headers.meaning
        if type(announced) is not Announced:
            announced = headers.meaning = announced_by(headers)
        payload: Payload
        if data is not None and not announced.digested:
            payload = Bytes(data)
        else:
            check_name(name)  # before the body is asked for
            payload = await payload_of(request.body, ContentDigest(headers), self._spool_folder)
        put = await self._store.put(
            name,
            payload,
            meta=announced.metadata,
            stamp=announced.stamp,
            kind=announced.kind,
            checksum=announced.checksum,
        )
        return Response(
            201 if put.outcome is Outcome.CREATED else 200,
            JSON,
            # A name that can be stored needs no quoting.
            b'{"id": "%b", "status": "%b", "size": %d, "stamp": "%016x"}\n'
            % (
                name.encode(),
                b"superseded" if put.outcome is Outcome.SUPERSEDED else b"OK",
                payload.size,
                put.stamp,
            ),
        )

    async def get(self, request: Request, name: str) -> Response:
        """Send a blob, or a range of it."""
        if request.method == "HEAD":
            tombstones = b"?" in request.target and request.query.get("tombstones") == "1"
            info = await self._store.stat(name, tombstones=tombstones)
            return Response(200, describe(info), Nothing(info.size))
        headers = request.headers
        if b"range" not in headers and b"if-none-match" not in headers:
            blob = await self._store.get(name)
            return Response(200, describe(blob.info), body_of(blob))
        return await self._get_part(request, name)

    async def _get_part(self, request: Request, name: str) -> Response:
        headers = request.headers
        info = await self._store.stat(name)
        tag = entity_tag(info)
        if not_modified(headers, tag):
            return Response(304, describe(info))
        part = None
        if range_applies(headers, tag):
            part = byte_range(headers.get(b"range"), info.size)
        blob = await self._store.get(name, byte_range=part)
        if entity_tag(blob.info) != tag:  # it was replaced meanwhile: none of this was about it
            return await self._get_part(request, name)
        status = 200 if part is None else 206
        return Response(status, describe(blob.info, part=part), body_of(blob))

    async def delete(self, request: Request, name: str) -> Response:
        """Leave a tombstone."""
        put = await self._store.delete(name, stamp=stamp_of(request.headers))
        if put.outcome is Outcome.SUPERSEDED:
            return answer({"id": name, "status": "superseded", "stamp": format_stamp(put.stamp)})
        stamp = (b"X-Dolmen-Stamp", format_stamp(put.stamp).encode())
        status = (b"X-Dolmen-Status", put.outcome.value.encode())
        return Response(204, [stamp, status])

    # Many blobs

    async def list(self, request: Request, _: str) -> Response:
        """List names (sos's way, one JSON array) or blobs, a line of JSON each."""
        query = request.query
        after = query.get("cursor")
        if after is not None:
            check_name(after)
        tombstones = query.get("tombstones") == "1"
        listing = self._store.list(
            after=after, prefix=query.get("prefix", ""), tombstones=tombstones
        )
        limit = limit_of(query["limit"]) if "limit" in query else None
        if NDJSON in request.headers.get(b"accept", b""):
            return _lines(_listing(listing, limit or PAGE))
        return Response(
            200, [(b"Content-Type", b"application/json")], Streamed(_array(listing, limit))
        )

    async def list_partitions(self, request: Request, _: str) -> Response:
        """List blobs of many partitions, named in the body."""
        order = await _order(request, {"partitions", "cursor", "prefix", "limit", "tombstones"})
        after = order.get("cursor")
        listing = self._store.list(
            partitions=_partitions(order.get("partitions")),
            after=check_name(str(after)) if after is not None else None,
            prefix=str(order.get("prefix", "")),
            tombstones=order.get("tombstones") is True,
        )
        return _lines(_listing(listing, limit_of(order.get("limit", PAGE))))

    async def touch(self, request: Request, _: str) -> Response:
        """Raise stamps and metadata of many blobs."""
        touches = _items(await _order(request, {"touches"}), "touches")

        async def answers() -> AsyncIterator[dict[str, object]]:
            for item in touches:
                name = str(item.get("name"))
                try:
                    put = await self._store.touch(
                        name,
                        stamp=parse_stamp(str(item.get("stamp"))),
                        checksum=parse_checksum(str(item.get("checksum"))),
                        meta=metadata.check(parse_base64(str(item.get("metadata", "")))),
                    )
                except DolmenError as error:
                    yield _failure(name, error)
                else:
                    yield _success(name, put)

        return _lines(answers())

    async def remove(self, request: Request, _: str) -> Response:
        """Drop this server's own copies of many blobs."""
        order = await _order(request, {"removes", "min_age"})
        removes = _items(order, "removes")
        min_age = order.get("min_age", 0)
        if not isinstance(min_age, int | float) or not min_age >= 0:  # NaN is not
            raise HTTPError(400, f"min_age is a number of seconds, not {min_age!r}.")

        async def answers() -> AsyncIterator[dict[str, object]]:
            for item in removes:
                name = str(item.get("name"))
                try:
                    stamp = parse_stamp(str(item.get("stamp")))
                    removed = await self._store.remove(name, if_stamp=stamp, min_age=min_age)
                except DolmenError as error:
                    yield _failure(name, error)
                else:
                    yield {"name": name, "removed": removed}

        return _lines(answers())

    async def digests(self, request: Request, _: str) -> Response:
        """Send the partition digests; their root is the ETag."""
        digests = await self._store.digests()
        tag = b'"%b"' % digests.root.encode()
        headers = [(b"ETag", tag), (b"Content-Type", b"application/octet-stream")]
        if not_modified(request.headers, tag):
            return Response(304, headers)
        return Response(200, headers, digests.encode())

    async def take_records(self, request: Request, _: str) -> Response:
        """Store a stream of records; a line for each says what became of it."""
        lines: list[bytes] = []
        names: list[str] = []

        async def blobs() -> AsyncIterator[Blob]:
            async for blob in records.decode(aiter(request.body)):
                if isinstance(blob, Failed):
                    raise BadContent(f"a refusal ({blob.name}) is nothing to store")
                names.append(blob.info.name)
                yield blob

        try:
            async for result in self._store.put_many(blobs()):
                name = names[len(lines)]
                if isinstance(result, Failed):
                    lines.append(json.dumps(_failure(name, result.error)).encode())
                else:  # needs no quoting
                    lines.append(
                        b'{"name": "%b", "status": "%b", "stamp": "%016x"}'
                        % (name.encode(), result.outcome.encode(), result.stamp)
                    )
        except DolmenError as error:
            if not lines:
                return refusal(error)
            lines.append(json.dumps(_failure("", error)).encode())
        return Response(200, [(b"Content-Type", NDJSON)], b"\n".join([*lines, b""]))

    async def read_records(self, request: Request, _: str) -> Response:
        """Send the blobs named in the body as a stream of records."""
        order = await _order(request, {"names"})
        names = order.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise HTTPError(400, 'The body is JSON of the form {"names": ["name", …]}.')
        stream = records.encode(self._store.get_many(names))
        return Response(200, [(b"Content-Type", b"application/x-dolmen-records")], Streamed(stream))

    # The server itself

    async def notes(self, _request: Request, _: str) -> Response:
        """Send every note, its value in base64."""
        notes = await self._store.notes()
        return answer({key: b64encode(value).decode() for key, value in notes.items()})

    async def note(self, request: Request, _: str) -> Response:
        """Keep a note: `{"key": text, "value": base64}`."""
        order = await _order(request, {"key", "value"})
        key = order.get("key")
        if not isinstance(key, str) or not 0 < len(key.encode()) <= 500:
            raise HTTPError(400, "A note's key is text of 1 to 500 bytes.")
        await self._store.note(key, parse_base64(str(order.get("value", ""))))
        return Response(204)

    async def alive(self, _request: Request, _: str) -> Response:
        """Say so."""
        return ALIVE

    async def healthz(self, _request: Request, _: str) -> Response:
        """Say that the process runs."""
        return answer({"status": "OK"})

    async def readyz(self, _request: Request, _: str) -> Response:
        """Say whether the server takes everything it is there for."""
        reasons: Sequence[str] = ()
        try:
            condition = await self._store.condition()
            reasons = condition.reasons
        except DolmenError as error:
            reasons = [str(error)]
        return answer({"ready": not reasons, "reasons": [*reasons]}, 503 if reasons else 200)

    async def status(self, _request: Request, _: str) -> Response:
        """Say everything a person wants to know."""
        digests = await self._store.digests()
        condition = await self._store.condition()
        return answer(
            {
                "version": dolmen.__version__,
                "store": self._describes,
                "uptime_seconds": round(time.time() - self._started),
                "capabilities": asdict(self._store.capabilities),
                "entries": digests.count,
                "bytes": digests.size,
                "partitions": len(digests.slots),
                "free_bytes": condition.free,
                "total_bytes": condition.total,
                "writable": condition.writable,
                "degraded": condition.reasons,
            }
        )


def body_of(blob: Blob) -> Buffer | Streamed:
    """The body of an answer with this blob."""
    payload = blob.payload
    whole = payload.whole
    return whole if whole is not None else Streamed(aiter(payload), payload.size)


class Nothing:
    """The body of an answer to HEAD: a length without bytes."""

    def __init__(self, length: int) -> None:
        self.length = length

    async def __aiter__(self) -> AsyncIterator[Piece]:
        raise AssertionError("HEAD has no body")
        yield b""


def describe_entry(info: BlobInfo) -> dict[str, object]:
    """A blob as a line of a listing."""
    line: dict[str, object] = {
        "name": info.name,
        "size": info.size,
        "kind": Kind(info.kind).name.lower(),
        "stamp": format_stamp(info.stamp),
        "checksum": info.checksum.hex(),
        "arrived": info.arrived,
    }
    if info.metadata:
        line["metadata"] = b64encode(info.metadata).decode()
    return line


async def _listing(
    listing: AsyncIterator[BlobInfo], limit: int
) -> AsyncIterator[dict[str, object]]:
    last = ""
    async for info in listing:
        if limit == 0:
            yield {"next": last}
            return
        yield describe_entry(info)
        last = info.name
        limit -= 1


async def _array(listing: AsyncIterator[BlobInfo], limit: int | None) -> AsyncIterator[bytes]:
    gathered: list[str] = []
    opening = "["
    async for info in listing:
        if limit is not None:
            if limit == 0:
                break
            limit -= 1
        gathered.append(f'"{info.name}"')
        if len(gathered) == PAGE:
            yield (opening + ",".join(gathered)).encode()
            gathered, opening = [], ","
    yield (opening + ",".join(gathered) if gathered or opening == "[" else "").encode() + b"]\n"


def _lines(items: AsyncIterator[dict[str, object]]) -> Response:
    async def encoded() -> AsyncIterator[bytes]:
        gathered: list[str] = []
        async for item in items:
            gathered.append(json.dumps(item))
            if len(gathered) == PAGE:
                yield "\n".join([*gathered, ""]).encode()
                gathered = []
        if gathered:
            yield "\n".join([*gathered, ""]).encode()

    return Response(200, [(b"Content-Type", NDJSON)], Streamed(encoded()))


def _success(name: str, put: Any) -> dict[str, object]:
    return {"name": name, "status": put.outcome.value, "stamp": format_stamp(put.stamp)}


def _failure(name: str, error: DolmenError) -> dict[str, object]:
    said: dict[str, object] = {
        "name": name,
        "status": "refused",
        "error": type(error).__name__,
        "detail": str(error),
    }
    if isinstance(error, NotFound) and error.stamp:
        said["stamp"] = format_stamp(error.stamp)
    return said


async def _order(request: Request, keys: set[str]) -> dict[str, Any]:
    """The JSON object a request carries, with no keys but these."""
    body = await request.body.read(_ORDER_MAX)
    try:
        order = json.loads(body or b"{}")
        if b"\\u" in body:
            json.dumps(order, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(order, dict) or not order.keys() <= keys:
        raise HTTPError(
            400, f"The body is a JSON object with the keys {', '.join(sorted(keys))} only."
        )
    return order


def _items(order: dict[str, Any], key: str) -> Sequence[dict[str, Any]]:
    items = order.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HTTPError(400, f'The body is a JSON object with a list of objects under "{key}".')
    return items


def _partitions(value: object) -> Sequence[int]:
    if value is None:
        return ALL_PARTITIONS
    if isinstance(value, list) and all(
        isinstance(item, int) and 0 <= item < PARTITIONS for item in value
    ):
        return sorted(set(value))
    raise HTTPError(400, f"partitions is a list of numbers from 0 to {PARTITIONS - 1}.")


def limit_of(value: object) -> int:
    """A page's length as it was asked for; raises `HTTPError` 400 for what is none."""
    try:
        limit = int(str(value))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE_MAX:
        raise HTTPError(400, f"limit is a number from 1 to {PAGE_MAX}, not {value!r}.")
    return limit
