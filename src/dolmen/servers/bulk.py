"""The routes of a blob server that concern many blobs in one request.

What replication, listings and collections use: `docs/wire-api.md` has the forms.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

from dolmen.closing import closing
from dolmen.errors import BadContent, DolmenError
from dolmen.http.conditional import not_modified
from dolmen.http.messages import Request, Response, Streamed
from dolmen.http.problems import HTTPError
from dolmen.names import check_name
from dolmen.servers.answers import refusal
from dolmen.servers.fields import parse_base64, parse_checksum
from dolmen.servers.lines import NDJSON, Told, array, entry, lines, listed, refused, written
from dolmen.servers.orders import PAGE, items_of, limit_of, order_of, partitions_of
from dolmen.servers.routes import Routes
from dolmen.stamps import parse_stamp
from dolmen.store import BlobStore, Failed, Listing, Remove, Write
from dolmen.stores import records

_VERIFIED = 32
"""Lines that tell of verified blobs sent together: reading that many may take a while."""


class Bulk:
    """These routes over a store."""

    def __init__(self, store: BlobStore, routes: Routes) -> None:
        self._store = store
        routes.add("GET", "/blobs", self.list)
        routes.add("POST", "/blobs/list", self.list_partitions)
        routes.add("POST", "/blobs/touch", self.touch)
        routes.add("POST", "/blobs/remove", self.remove)
        routes.add("POST", "/blobs/verify", self.verify)
        routes.add("GET", "/quarantined", self.quarantined)
        routes.add("GET", "/digests", self.digests)
        routes.add("POST", "/records", self.take_records)
        routes.add("POST", "/records/read", self.read_records)

    async def list(self, request: Request, _: str) -> Response:
        """List names (sos's way, one JSON array) or blobs, a line of JSON each."""
        query = request.query
        after = query.get("cursor")
        if after is not None:
            check_name(after)
        tombstones = query.get("tombstones") == "1"
        listing = self._store.list(
            Listing(after=after, prefix=query.get("prefix", ""), tombstones=tombstones)
        )
        limit = limit_of(query["limit"]) if "limit" in query else None
        if NDJSON in request.headers.get(b"accept", b""):
            return lines(listed(listing, limit or PAGE))
        return Response(
            200, [(b"Content-Type", b"application/json")], Streamed(array(listing, limit))
        )

    async def list_partitions(self, request: Request, _: str) -> Response:
        """List blobs of many partitions, named in the body."""
        order = await order_of(request, {"partitions", "cursor", "prefix", "limit", "tombstones"})
        after = order.get("cursor")
        listing = self._store.list(
            Listing(
                partitions=partitions_of(order.get("partitions")),
                after=check_name(str(after)) if after is not None else None,
                prefix=str(order.get("prefix", "")),
                tombstones=order.get("tombstones") is True,
            )
        )
        return lines(listed(listing, limit_of(order.get("limit", PAGE))))

    async def touch(self, request: Request, _: str) -> Response:
        """Raise stamps and metadata of many blobs."""
        touches = items_of(await order_of(request, {"touches"}), "touches")

        async def answers() -> AsyncIterator[str]:
            for item in touches:
                name = str(item.get("name"))
                try:
                    touch = Write.touch(
                        name,
                        stamp=parse_stamp(str(item.get("stamp"))),
                        checksum=parse_checksum(str(item.get("checksum"))),
                        metadata=parse_base64(str(item.get("metadata", ""))),
                    )
                    put = await self._store.write(touch)
                except DolmenError as error:
                    yield refused(name, error)
                else:
                    yield written(name, put)

        return lines(answers())

    async def remove(self, request: Request, _: str) -> Response:
        """Drop this server's own copies of many blobs."""
        order = await order_of(request, {"removes", "min_age", "epoch"})
        removes = items_of(order, "removes")
        min_age = order.get("min_age", 0)
        if not isinstance(min_age, int | float) or not min_age >= 0:  # NaN is not
            raise HTTPError(400, f"min_age is a number of seconds, not {min_age!r}.")
        epoch = order.get("epoch")
        if epoch is not None and type(epoch) is not int:
            raise HTTPError(400, f"epoch is a number, not {epoch!r}.")
        items = [
            Remove(check_name(str(item.get("name"))), parse_stamp(str(item.get("stamp"))))
            for item in removes
        ]
        removed = await self._store.remove_many(items, min_age=min_age, epoch=epoch)

        async def answers() -> AsyncIterator[str]:
            for item, whether in zip(items, removed, strict=True):
                yield json.dumps({"name": item.name, "removed": whether})

        return lines(answers())

    async def verify(self, request: Request, _: str) -> Response:
        """Read the blobs named in the body to their ends; a line for each that tells how it is."""
        names = await _names(request)

        async def answers() -> AsyncIterator[str]:
            async with closing(self._store.verify_many(names)) as verified:
                async for found in verified:
                    if isinstance(found, Failed):
                        yield refused(found.name, found.error)
                    else:
                        yield entry(found)

        return lines(answers(), together=_VERIFIED)

    async def quarantined(self, _request: Request, _: str) -> Response:
        """List the copies known to be damaged, a line with its name for each."""

        async def named() -> AsyncIterator[str]:
            async with closing(self._store.list(Listing(quarantined=True))) as infos:
                async for info in infos:
                    yield json.dumps({"name": info.name})

        return lines(named())

    async def digests(self, request: Request, _: str) -> Response:
        """Send the partition digests; their root is the ETag."""
        digests = await self._store.digests()
        tag = b'"%b"' % digests.root.encode()
        headers = [(b"ETag", tag), (b"Content-Type", b"application/octet-stream")]
        if not_modified(request.headers, tag):
            return Response(304, headers)
        return Response(200, headers, digests.encode())

    async def take_records(self, request: Request, _: str) -> Response:
        """Store a stream of records; a line says what became of each, or of several alike."""
        said = Told()

        async def writes() -> AsyncIterator[Write]:
            async for blob in records.decode(aiter(request.body)):
                if isinstance(blob, Failed):
                    raise BadContent(f"a refusal ({blob.name}) is nothing to store")
                said.names.append(blob.info.name)
                yield Write.copy(blob)

        try:
            async for result in self._store.write_many(writes()):
                said.add(result)
        except DolmenError as error:
            if not said.count:
                return refusal(error)
            said.broke(error)
        return Response(200, [(b"Content-Type", NDJSON)], said.lines())

    async def read_records(self, request: Request, _: str) -> Response:
        """Send the blobs named in the body as a stream of records."""
        stream = records.encode(self._store.get_many(await _names(request)))
        return Response(200, [(b"Content-Type", b"application/x-dolmen-records")], Streamed(stream))


async def _names(request: Request) -> Sequence[str]:
    order = await order_of(request, {"names"})
    names = order.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise HTTPError(400, 'The body is JSON of the form {"names": ["name", …]}.')
    return names
