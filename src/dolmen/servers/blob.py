"""The blob server: an HTTP front on one blob store.

It speaks what an sos blob server speaks (`POST`, `GET`, `HEAD /blob/{name}`, `GET
/blobs`, `GET /alive`) and beside it everything a store of the contract can do, so
that `dolmen.stores.remote_server` is the same store again. `docs/wire-api.md` lists the
routes.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import asdict

import dolmen
from dolmen.errors import DolmenError
from dolmen.http.conditional import (
    byte_range,
    not_modified,
    range_applies,
    refuse_conditions,
    selects,
)
from dolmen.http.encoding import EncodedHeaders
from dolmen.http.messages import Buffer, Request, Response, Streamed
from dolmen.http.problems import HTTPError
from dolmen.names import check_name
from dolmen.payload import Bytes, Payload, Piece
from dolmen.ready import Ready
from dolmen.servers.answers import JSON, VOLATILE, VOLATILE_JSON, answer
from dolmen.servers.fields import (
    Announced,
    ContentDigest,
    announced_by,
    describe,
    entity_tag,
    modified,
    parse_base64,
    stamp_of,
)
from dolmen.servers.incoming import payload_of
from dolmen.servers.metrics import Figure
from dolmen.servers.records import Records, order_of
from dolmen.servers.routes import Routes
from dolmen.stamps import format_stamp
from dolmen.store import Blob, BlobStore, Outcome, Write
from dolmen.stores.scrub import scrub_in
from dolmen.stores.volume.compaction import compaction_in

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
        Records(store, routes)
        routes.add("GET", "/notes", self.notes)
        routes.add("POST", "/notes", self.note)
        routes.add("GET", "/alive", self.alive)
        routes.add("GET", "/healthz", self.healthz)
        routes.add("GET", "/readyz", self.readyz)
        routes.add("GET", "/status", self.status)
        self.listeners = (routes,)
        self.stores = (store,)

    def figures(self) -> Iterable[Figure]:
        """None: a store tells of itself under `/status`."""
        return ()

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
        put = await self._store.write(
            Write(
                name,
                payload,
                announced.kind,
                announced.metadata,
                announced.stamp,
                announced.checksum,
            )
        )
        return Response(
            201 if put.outcome is Outcome.CREATED else 200,
            JSON if self._store.capabilities.durable else VOLATILE_JSON,
            # A name that can be stored needs no quoting.
            b'{"id": "%b", "status": "%b", "size": %d, "stamp": "%016x"}\n'
            % (
                name.encode(),
                b"superseded" if put.outcome is Outcome.SUPERSEDED else b"OK",
                payload.size,
                put.stamp,
            ),
        )

    def get(self, request: Request, name: str) -> Response | Awaitable[Response]:
        """Send a blob, or a range of it."""
        if request.method == "HEAD" or selects(request.headers):
            return self._get_selected(request, name)
        blob: Awaitable[Blob] = self._store.get(name)
        if isinstance(blob, Ready):
            return _whole(blob.value)
        return _whole_when_there(blob)

    async def _get_selected(self, request: Request, name: str) -> Response:
        if request.method == "HEAD":
            info = await self._store.stat(name)
            if not_modified(request.headers, entity_tag(info), modified(info)):
                return Response(304, describe(info))
            return Response(200, describe(info), Nothing(info.size))
        headers = request.headers
        info = await self._store.stat(name)
        tag = entity_tag(info)
        if not_modified(headers, tag, modified(info)):
            return Response(304, describe(info))
        part = None
        if range_applies(headers, tag):
            part = byte_range(headers.get(b"range"), info.size)
        blob = await self._store.get(name, byte_range=part)
        if entity_tag(blob.info) != tag:  # it was replaced meanwhile: none of this was about it
            return await self._get_selected(request, name)
        status = 200 if part is None else 206
        return Response(status, describe(blob.info, part=part), body_of(blob))

    async def delete(self, request: Request, name: str) -> Response:
        """Leave a tombstone."""
        refuse_conditions(request.headers)
        put = await self._store.write(Write.tombstone(name, stamp=stamp_of(request.headers)))
        stamp = (b"X-Dolmen-Stamp", format_stamp(put.stamp).encode())
        status = (b"X-Dolmen-Status", put.outcome.value.encode())
        volatile = () if self._store.capabilities.durable else (VOLATILE,)
        if put.outcome is Outcome.SUPERSEDED:
            said = {"id": name, "status": "superseded", "stamp": format_stamp(put.stamp)}
            return answer(said, headers=[stamp, status, *volatile])
        return Response(204, [stamp, status, *volatile])

    # The server itself

    async def notes(self, _request: Request, _: str) -> Response:
        """Send every note, its value in base64."""
        notes = await self._store.notes()
        return answer({key: b64encode(value).decode() for key, value in notes.items()})

    async def note(self, request: Request, _: str) -> Response:
        """Keep a note: `{"key": text, "value": base64}`."""
        order = await order_of(request, {"key", "value"})
        key = order.get("key")
        if not isinstance(key, str) or not 0 < len(key.encode()) <= 500:
            raise HTTPError(400, "A note's key is text of 1 to 500 bytes.")
        await self._store.note(key, parse_base64(str(order.get("value", ""))))
        return Response(204)

    def alive(self, _request: Request, _: str) -> Response:
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
        condition = await self._store.condition()
        notes = await self._store.notes()
        scrub, compaction = scrub_in(notes), compaction_in(notes)
        held: dict[str, object] = {}
        if self._store.capabilities.digests:  # else it would have to list everything
            digests = await self._store.digests()
            held["entries"], held["bytes"] = digests.count, digests.size
            held["partitions"] = len(digests.counts)
        return answer(
            {
                "version": dolmen.__version__,
                "store": self._describes,
                "uptime_seconds": round(time.time() - self._started),
                "capabilities": asdict(self._store.capabilities),
                **held,
                "free_bytes": condition.free,
                "total_bytes": condition.total,
                "writable": condition.writable,
                "degraded": condition.reasons,
                "remarks": condition.remarks,
                "scrub": asdict(scrub) if scrub else None,
                "compaction": asdict(compaction) if compaction else None,
            }
        )


def _whole(blob: Blob) -> Response:
    return Response(200, describe(blob.info), body_of(blob))


async def _whole_when_there(blob: Awaitable[Blob]) -> Response:
    return _whole(await blob)


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
