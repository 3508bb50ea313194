"""The routes of a blob server that concern many blobs in one request.

People list with `GET /blobs`; servers speak records and entries to each other
(`dolmen.stores.records`, `dolmen.stores.wire`). `docs/wire-api.md` has the forms.

Read first: `dolmen.servers.routes`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dolmen.closing import closing
from dolmen.errors import BadContent, DolmenError, TooLarge
from dolmen.http import Body, EncodedHeaders, HTTPError, Request, Response, Streamed
from dolmen.http.conditional import not_modified
from dolmen.names import PARTITIONS, check_name
from dolmen.record import Kind
from dolmen.servers.answers import VOLATILE, answer
from dolmen.servers.fields import parse_base64
from dolmen.servers.routes import Routes
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, BlobStore, Failed, Listing, Remove, Write
from dolmen.stores import record_reader, records, wire

NDJSON = b"application/x-ndjson"
PAGE = 1000
"""Entries in a page when the request does not say how many."""
PAGE_MAX = 100_000
_LARGEST = 16 << 20
"""The largest JSON body (names to read, partitions to list), in bytes."""
_VERIFIED = 1
"""Entries of verified blobs are sent one by one: reading each may take a while."""
_BINARY = [(b"Content-Type", b"application/octet-stream")]
_RECORDS = EncodedHeaders.of([(b"Content-Type", b"application/x-dolmen-records")])
_LINES = EncodedHeaders.of([(b"Content-Type", b"text/plain")])
_VOLATILE_LINES = EncodedHeaders.of([(b"Content-Type", b"text/plain"), VOLATILE])
_KINDS = {kind.value: kind.name.lower() for kind in Kind}


_Name = Annotated[str, AfterValidator(check_name)]
_Stamp = Annotated[int, BeforeValidator(lambda text: parse_stamp(str(text)))]
_Base64 = Annotated[bytes, BeforeValidator(lambda text: parse_base64(str(text)))]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Order = TypeVar("Order", bound=_Form)


class Note(_Form):
    """`POST /notes`: a fact to keep, its value in base64."""

    key: str = Field(min_length=1, max_length=250)
    value: _Base64 = b""


class _List(_Form):
    partitions: list[Annotated[int, Field(ge=0, lt=PARTITIONS)]] | None = None
    after: _Name | None = None
    prefix: str = ""
    tombstones: bool = False
    quarantined: bool = False
    limit: int = Field(PAGE, ge=1, le=PAGE_MAX)


class _Names(_Form):
    names: list[str]


class _Read(_Names):
    most: int | None = Field(None, ge=0, le=1 << 20)


class _Remove(_Form):
    removes: list[tuple[_Name, _Stamp]]
    min_age: float = Field(0, ge=0)
    epoch: int | None = None


class BulkRoutes:
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
        try:
            async for result in self._store.write_many(_writes_in(request.body)):
                answers += wire.encode_answer(result)
        except DolmenError as error:
            if not answers:
                raise
            answers += wire.encode_answer(Failed("", error))
        durable = self._store.capabilities.durable
        return Response(200, _LINES if durable else _VOLATILE_LINES, bytes(answers))

    async def list(self, request: Request, _: str) -> Response:
        """Send what is known of the blobs in some partitions, as entries."""
        order = await order_of(request, _List)
        wanted = order.partitions
        listing = Listing(
            ALL_PARTITIONS if wanted is None else sorted(set(wanted)),
            order.after,
            order.prefix,
            order.tombstones,
            order.quarantined,
        )
        entries = wire.encode_entries(self._store.list(listing), order.limit)
        return Response(200, _BINARY, Streamed(entries))

    async def read(self, request: Request, _: str) -> Response:
        """Send the blobs named in the body as a stream of records.

        With `most` the answer has so many bytes of data at most, and comes in one piece.
        """
        order = await order_of(request, _Read)
        blobs = self._store.get_many(order.names)
        if order.most is None:
            return Response(200, _RECORDS, Streamed(records.encode(blobs)))
        async with closing(records.encode(_up_to(order.most, blobs))) as pieces:
            return Response(200, _RECORDS, b"".join([piece async for piece in pieces]))

    async def verify(self, request: Request, _: str) -> Response:
        """Read the blobs named in the body to their ends; an entry for each says how it is."""
        found = self._store.verify_many((await order_of(request, _Names)).names)
        return Response(200, _BINARY, Streamed(wire.encode_entries(found, together=_VERIFIED)))

    async def remove(self, request: Request, _: str) -> Response:
        """Drop this server's own copies of many blobs."""
        order = await order_of(request, _Remove)
        items = [Remove(*each) for each in order.removes]
        removed = await self._store.remove_many(items, min_age=order.min_age, epoch=order.epoch)
        return answer({"removed": list(removed)})


async def _writes_in(body: Body) -> AsyncIterator[Write]:
    """The writes of a stream of records; of one that is here, none where anything is wrong."""
    writes = (_write_of(each) async for each in record_reader.decode(aiter(body)))
    if body.whole is not None:
        for write in [write async for write in writes]:
            yield write
    else:
        async for write in writes:
            yield write


def _write_of(item: Blob | Failed) -> Write:
    if isinstance(item, Failed):
        raise BadContent(f"a refusal ({item.name}) can't be stored")
    return Write.copy(item)


async def _up_to(most: int, blobs: AsyncIterator[Blob | Failed]) -> AsyncIterator[Blob | Failed]:
    """Blobs with so many bytes together; one that does not fit any more is refused."""
    async with closing(blobs) as answers:
        async for item in answers:
            if isinstance(item, Failed) or item.payload.size <= most:
                most -= item.payload.size if isinstance(item, Blob) else 0
                yield item
            else:
                name = item.info.name
                yield Failed(name, TooLarge(f"{name} does not fit into the answer: read it alone"))


async def order_of(request: Request, form: type[Order]) -> Order:
    """What a request's JSON orders; raises `HTTPError` 400 for anything of another form."""
    body = await request.body.read(_LARGEST)
    try:
        return form.model_validate_json(body or b"{}")
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ")
            for each in error.errors()[:3]
        )
        raise HTTPError(400, f"The body is not the JSON this takes. {wrong}.") from error


def limit_of(value: object) -> int:
    """A page's length; raises `HTTPError` 400 for an invalid one."""
    try:
        limit = int(str(value))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE_MAX:
        raise HTTPError(400, f"limit is a number from 1 to {PAGE_MAX}, not {value!r}.")
    return limit


async def _pages(
    infos: AsyncIterator[BlobInfo], limit: int | None
) -> AsyncIterator[tuple[list[BlobInfo], bool]]:
    """The first `limit` blobs, so many at a time; with the last of them whether there are more."""
    page: list[BlobInfo] = []
    async with closing(infos) as listed:
        async for info in listed:
            if limit == 0:
                yield page, True
                return
            if len(page) == PAGE:
                yield page, False
                page = []
            page.append(info)
            limit = None if limit is None else limit - 1
    yield page, False


async def _lines(infos: AsyncIterator[BlobInfo], limit: int) -> AsyncIterator[bytes]:
    """A line of JSON for each of the first `limit` blobs, and one with the next page's cursor."""
    async with closing(_pages(infos, limit)) as pages:
        async for page, more in pages:
            lines = [_line(info) for info in page]
            if more:
                lines.append(json.dumps({"next": page[-1].name}))
            if lines:
                yield "\n".join([*lines, ""]).encode()


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
    before = "["
    async with closing(_pages(infos, limit)) as pages:
        async for page, _ in pages:
            if page:
                yield (before + ",".join(f'"{info.name}"' for info in page)).encode()
                before = ","
    yield b"]\n" if before == "," else b"[]\n"
