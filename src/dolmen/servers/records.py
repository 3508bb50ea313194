"""The routes of a blob server that concern many blobs in one request.

People list with `GET /blobs`; servers speak records and entries to each other
(`dolmen.stores.records`, `dolmen.stores.wire`). `docs/wire-api.md` has the forms.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dolmen.closing import closing
from dolmen.errors import BadContent, DolmenError
from dolmen.http import HTTPError, Request, Response, Streamed, not_modified
from dolmen.names import PARTITIONS, check_name
from dolmen.record import Kind
from dolmen.servers.answers import answer
from dolmen.servers.routes import Routes
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Failed, Listing, Remove, Write
from dolmen.stores import records, wire

NDJSON = b"application/x-ndjson"
PAGE = 1000
"""Entries in a page when the request does not say how many."""
PAGE_MAX = 100_000
_LARGEST = 16 << 20
"""The largest JSON body (names to read, partitions to list), in bytes."""
_VERIFIED = 1
"""Entries of verified blobs are sent one by one: reading each may take a while."""
_BINARY = [(b"Content-Type", b"application/octet-stream")]
_RECORDS = [(b"Content-Type", b"application/x-dolmen-records")]
_KINDS = {kind.value: kind.name.lower() for kind in Kind}


class Records:
    """These routes over a store."""

    def __init__(self, store: BlobStore, routes: Routes) -> None:
        self._store = store
        routes.add("GET", "/blobs", self.names)
        routes.add("GET", "/digests", self.digests)
        routes.add("POST", "/records", self.write)
        routes.add("POST", "/records/list", self.list)
        routes.add("POST", "/records/read", self.read)
        routes.add("POST", "/records/remove", self.remove)
        routes.add("POST", "/records/verify", self.verify)

    async def names(self, request: Request, _: str) -> Response:
        """List names (sos's way, one JSON array) or blobs, a line of JSON each."""
        query = request.query
        after = query.get("cursor")
        listing = Listing(
            after=check_name(after) if after is not None else None,
            prefix=query.get("prefix", ""),
            tombstones=query.get("tombstones") == "1",
        )
        limit = limit_of(query["limit"]) if "limit" in query else None
        infos = self._store.list(listing)
        if NDJSON in request.headers.get(b"accept", b""):
            return Response(
                200, [(b"Content-Type", NDJSON)], Streamed(_lines(infos, limit or PAGE))
            )
        return Response(
            200, [(b"Content-Type", b"application/json")], Streamed(_array(infos, limit))
        )

    async def digests(self, request: Request, _: str) -> Response:
        """Send the partition digests; their root is the ETag."""
        digests = await self._store.digests()
        tag = b'"%b"' % digests.root.encode()
        headers = [(b"ETag", tag), *_BINARY]
        if not_modified(request.headers, tag):
            return Response(304, headers)
        return Response(200, headers, digests.encode())

    async def write(self, request: Request, _: str) -> Response:
        """Carry out a stream of records; the body has an answer for each (`wire`)."""
        answers = bytearray()

        async def writes() -> AsyncIterator[Write]:
            async for blob in records.decode(aiter(request.body)):
                if isinstance(blob, Failed):
                    raise BadContent(f"a refusal ({blob.name}) can't be stored")
                yield Write.copy(blob)

        try:
            async for result in self._store.write_many(writes()):
                answers += wire.encode_answer(result)
        except DolmenError as error:
            if not answers:
                raise
            answers += wire.encode_answer(Failed("", error))
        return Response(200, [(b"Content-Type", b"text/plain")], bytes(answers))

    async def list(self, request: Request, _: str) -> Response:
        """Send what is known of the blobs in some partitions, as entries."""
        order = await order_of(
            request, {"partitions", "after", "prefix", "tombstones", "quarantined", "limit"}
        )
        after = order.get("after")
        listing = Listing(
            partitions=partitions_of(order.get("partitions")),
            after=check_name(str(after)) if after is not None else None,
            prefix=str(order.get("prefix", "")),
            tombstones=order.get("tombstones") is True,
            quarantined=order.get("quarantined") is True,
        )
        limit = limit_of(order.get("limit", PAGE))
        return Response(
            200, _BINARY, Streamed(wire.encode_entries(self._store.list(listing), limit))
        )

    async def read(self, request: Request, _: str) -> Response:
        """Send the blobs named in the body as a stream of records."""
        stream = records.encode(self._store.get_many(await names_of(request)))
        return Response(200, _RECORDS, Streamed(stream))

    async def verify(self, request: Request, _: str) -> Response:
        """Read the blobs named in the body to their ends; an entry for each says how it is."""
        found = self._store.verify_many(await names_of(request))
        return Response(200, _BINARY, Streamed(wire.encode_entries(found, together=_VERIFIED)))

    async def remove(self, request: Request, _: str) -> Response:
        """Drop this server's own copies of many blobs."""
        order = await order_of(request, {"removes", "min_age", "epoch"})
        min_age, epoch = order.get("min_age", 0), order.get("epoch")
        if not isinstance(min_age, int | float) or not min_age >= 0:  # NaN is not
            raise HTTPError(400, f"min_age is a number of seconds, not {min_age!r}.")
        if epoch is not None and type(epoch) is not int:
            raise HTTPError(400, f"epoch is a number, not {epoch!r}.")
        removes = order.get("removes")
        if not isinstance(removes, list) or not all(
            isinstance(each, list) and len(each) == 2 for each in removes
        ):
            raise HTTPError(400, 'removes is a list of pairs ["name", "stamp"].')
        items = [Remove(check_name(str(name)), parse_stamp(str(at))) for name, at in removes]
        removed = await self._store.remove_many(items, min_age=min_age, epoch=epoch)
        return answer({"removed": list(removed)})


async def order_of(request: Request, keys: set[str]) -> dict[str, Any]:
    """The JSON object a request carries; raises `HTTPError` 400 for keys other than these."""
    body = await request.body.read(_LARGEST)
    try:
        order = json.loads(body or b"{}")
        if b"\\u" in body:
            json.dumps(order, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(order, dict) or not order.keys() <= keys:
        raise HTTPError(
            400, f"The body is a JSON object with the keys {', '.join(sorted(keys))} only."
        )
    return order


async def names_of(request: Request) -> Sequence[str]:
    """The names in a request's body; raises `HTTPError` 400."""
    names = (await order_of(request, {"names"})).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise HTTPError(400, 'The body is JSON of the form {"names": ["name", …]}.')
    return names


def partitions_of(value: object) -> Sequence[int]:
    """The partitions to list, ascending; None means all. Raises `HTTPError` 400."""
    if value is None:
        return ALL_PARTITIONS
    if isinstance(value, list) and all(
        isinstance(item, int) and 0 <= item < PARTITIONS for item in value
    ):
        return sorted(set(value))
    raise HTTPError(400, f"partitions is a list of numbers from 0 to {PARTITIONS - 1}.")


def limit_of(value: object) -> int:
    """A page's length; raises `HTTPError` 400 for an invalid one."""
    try:
        limit = int(str(value))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE_MAX:
        raise HTTPError(400, f"limit is a number from 1 to {PAGE_MAX}, not {value!r}.")
    return limit


async def _lines(infos: AsyncIterator[BlobInfo], limit: int) -> AsyncIterator[bytes]:
    """A line of JSON for each of the first `limit` blobs, and one with the next page's cursor."""
    gathered: list[str] = []
    last = ""
    async with closing(infos) as listed:
        async for info in listed:
            if limit == 0:
                gathered.append(json.dumps({"next": last}))
                break
            gathered.append(_line(info))
            last = info.name
            limit -= 1
            if len(gathered) == PAGE:
                yield "\n".join([*gathered, ""]).encode()
                gathered = []
    if gathered:
        yield "\n".join([*gathered, ""]).encode()


def _line(info: BlobInfo) -> str:
    said: dict[str, object] = {
        "name": info.name,
        "size": info.size,
        "kind": _KINDS[info.kind],
        "stamp": format_stamp(info.stamp),
        "checksum": info.checksum.hex(),
        "arrived": info.arrived,
    }
    if info.metadata:
        said["metadata"] = b64encode(info.metadata).decode()
    return json.dumps(said)


async def _array(infos: AsyncIterator[BlobInfo], limit: int | None) -> AsyncIterator[bytes]:
    """Names as one JSON array, in pieces."""
    gathered: list[str] = []
    opening = "["
    async with closing(infos) as listed:
        async for info in listed:
            if limit is not None:
                if limit == 0:
                    break
                limit -= 1
            gathered.append(f'"{info.name}"')
            if len(gathered) == PAGE:
                yield (opening + ",".join(gathered)).encode()
                gathered, opening = [], ","
    yield (opening + ",".join(gathered) if gathered or opening == "[" else "").encode() + b"]\n"
