"""The blob server: an HTTP front on one blob store.

It speaks what an sos blob server speaks (`POST`, `GET`, `HEAD /blob/{name}`, `GET
/blobs`, `GET /alive`) and beside it everything a store of the contract can do, so
that `dolmen.stores.remote_server` is the same store again. `docs/wire-api.md` lists the
routes.

Read first: `dolmen.store`, `dolmen.servers.routes`.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Awaitable
from dataclasses import asdict
from functools import partial

import dolmen
from dolmen.http import EncodedHeaders, Request, Response
from dolmen.http.conditional import refuse_conditions, selects
from dolmen.names import check_name
from dolmen.payload import Bytes, Payload
from dolmen.ready import Ready
from dolmen.servers.answers import JSON, VOLATILE, VOLATILE_JSON, answer, body_of, selected
from dolmen.servers.bulk import BulkRoutes, Note, order_of
from dolmen.servers.fields import describe, entity_tag, stamp_of
from dolmen.servers.incoming import Checked, announced
from dolmen.servers.routes import Application, Routes
from dolmen.stamps import format_stamp
from dolmen.store import Blob, BlobInfo, BlobStore, Outcome, Range, Write
from dolmen.stores.scrub import scrub_in
from dolmen.stores.volume.compaction import compaction_in


class BlobServer(Application):
    """The routes over a store. `spool_folder` takes bodies of unknown length."""

    name = "blob"

    def __init__(
        self, store: BlobStore, *, describes: str, spool_folder: str | None = None
    ) -> None:
        routes = Routes()
        routes.add("POST PUT", "/blob/{name}", self.put)
        routes.add("GET", "/blob/{name}", self.get)
        routes.add("DELETE", "/blob/{name}", self.delete)
        BulkRoutes(store, routes)
        routes.add("GET", "/notes", self.notes)
        routes.add("POST", "/notes", self.note)
        routes.add("GET", "/status", self.status)
        super().__init__(store, (store,), (routes,))
        self._describes = describes
        self._spool_folder = spool_folder
        self._started = time.time()

    # One blob

    async def put(self, request: Request, name: str) -> Response:
        """Store a blob."""
        told, data = announced(request), request.body.whole
        if data is not None and not told.digested:
            payload: Payload = Bytes(data)
        else:
            check_name(name)  # before the body is asked for
            payload = await Checked(request).payload(self._spool_folder)
        put = await self.store.write(
            Write(name, payload, told.kind, told.metadata, told.stamp, told.checksum)
        )
        return Response(
            201 if put.outcome is Outcome.CREATED else 200,
            JSON if self.store.capabilities.durable else VOLATILE_JSON,
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
            return selected(
                request,
                partial(self.store.stat, name),
                lambda part: self.store.get(name, byte_range=part),
                entity_tag,
                _described,
            )
        blob: Awaitable[Blob] = self.store.get(name)
        if isinstance(blob, Ready):
            return _whole(blob.value)
        return _whole_when_there(blob)

    async def delete(self, request: Request, name: str) -> Response:
        """Leave a tombstone."""
        refuse_conditions(request.headers)
        put = await self.store.write(Write.tombstone(name, stamp=stamp_of(request.headers)))
        headers = [
            (b"X-Dolmen-Stamp", format_stamp(put.stamp).encode()),
            (b"X-Dolmen-Status", put.outcome.value.encode()),
        ]
        if not self.store.capabilities.durable:
            headers.append(VOLATILE)
        if put.outcome is Outcome.SUPERSEDED:
            said = {"id": name, "status": "superseded", "stamp": format_stamp(put.stamp)}
            return answer(said, headers=headers)
        return Response(204, headers)

    # The server itself

    async def notes(self, _request: Request, _: str) -> Response:
        """Send every note, its value in base64."""
        notes = await self.store.notes()
        return answer({key: b64encode(value).decode() for key, value in notes.items()})

    async def note(self, request: Request, _: str) -> Response:
        """Keep a note: `{"key": text, "value": base64}`."""
        order = await order_of(request, Note)
        await self.store.note(order.key, order.value)
        return Response(204)

    async def status(self, _request: Request, _: str) -> Response:
        """Say everything a person wants to know."""
        condition = await self.store.condition()
        notes = await self.store.notes()
        scrub, compaction = scrub_in(notes), compaction_in(notes)
        held: dict[str, object] = {}
        if self.store.capabilities.digests:  # else it would have to list everything
            digests = await self.store.digests()
            held["entries"], held["bytes"] = digests.count, digests.size
            held["partitions"] = len(digests.counts)
        return answer(
            {
                "version": dolmen.__version__,
                "store": self._describes,
                "uptime_seconds": round(time.time() - self._started),
                "capabilities": asdict(self.store.capabilities),
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


def _described(info: BlobInfo, part: Range | None) -> EncodedHeaders:
    return describe(info, part=part)


def _whole(blob: Blob) -> Response:
    return Response(200, describe(blob.info), body_of(blob))


async def _whole_when_there(blob: Awaitable[Blob]) -> Response:
    return _whole(await blob)
