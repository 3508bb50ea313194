"""`http://host:port` a dolmen blob server as a store; also a plain sos blob server.

What the far store promises holds here too: `capabilities` are those it told of
when it was first asked, and each write's answer says anew whether it is durable.
Every answer is a request of its own; lists, reads and writes in bulk go in
batches. A server that knows no digests (an sos blob server) is used by plain
list, HEAD, GET and POST: it has no stamps (they count as 0), no tombstones and no
touch, and a delete or a remove there is refused with `ReadOnly`.

A request that may have been acted on is never repeated: the caller gets
`OutcomeUnknown` and decides.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import (
    BadSetting,
    Corrupt,
    DolmenError,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.http.client import Client
from dolmen.http.client_connection import ClientResponse
from dolmen.http.messages import Streamed
from dolmen.names import check_name, checksum_of, is_chunk_name, is_object_id, partition_of
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.record import Kind
from dolmen.stamps import format_stamp
from dolmen.store import (
    ALL_PARTITIONS,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Failed,
    Outcome,
    Put,
    Range,
    Remove,
)
from dolmen.stores.bulk import OneByOne
from dolmen.stores.remote_bulk import list_all, read_many, verify_all, write_many
from dolmen.stores.verdict import NO_CHECKSUM
from dolmen.stores.wire import (
    ANSWER_MAX,
    Unsatisfiable,
    deleted,
    error_of,
    info_of,
    lines_of,
    names_of,
    notes_of,
    object_of,
    put_of,
    stored,
    told,
)

_OPENING = 10.0
"""Seconds for which a server is waited for to say what it is, before it is taken for the usual."""
_EXPECTED = Capabilities(durable=True, largest=1 << 44, digests=True, ordered=True, conflicts=True)
"""Taken for true of a server that could not be asked yet; it is before anything else is."""
_PLAIN = Capabilities(
    durable=True, largest=1 << 31, digests=False, ordered=False, conflicts=False, stamps=False
)


class RemoteStore(OneByOne):
    """A blob server at an address. Connections are made when they are needed."""

    def __init__(self, address: str, client: Client) -> None:
        self._address = address
        self._client = client
        self.capabilities = _EXPECTED
        self._known = False
        self._digests: tuple[bytes, Digests] | None = None

    async def put(
        self,
        name: str,
        payload: Payload,
        *,
        meta: bytes = b"",
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
    ) -> Put:
        """See `BlobStore.put`."""
        check_name(name)
        headers: list[tuple[bytes, bytes]] = []
        if self.capabilities.stamps:
            if stamp is not None:
                headers.append((b"X-Dolmen-Stamp", format_stamp(stamp).encode()))
            if kind == Kind.MANIFEST:
                headers.append((b"X-Dolmen-Kind", b"manifest"))
            if checksum is not None:
                headers.append((b"X-Dolmen-Checksum", checksum.hex().encode()))
            if meta:
                metadata.check(meta)
                headers.append((b"X-Dolmen-Metadata", b64encode(meta)))
        else:
            if kind == Kind.MANIFEST:  # it would stand for the object's own content
                self._needs_stamps("given manifests, so it keeps no large objects")
            headers.extend(metadata.decode(meta))
        whole = payload.whole
        body = whole if whole is not None else Streamed(_to_the_end(payload), payload.size)
        response = await self._ask(
            "POST", f"/blob/{name}", headers, body, expect_continue=whole is None
        )
        if not self.capabilities.stamps:
            await response.body.read(ANSWER_MAX)
            return Put(Outcome.CREATED if response.status == 201 else Outcome.UNCHANGED, 0)
        self._note_durable(response)
        return stored(response.status, await object_of(response, reads=False))

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        check_name(name)
        headers: list[tuple[bytes, bytes]] = []
        if byte_range is not None:
            start, stop = byte_range
            if stop <= start:
                return Blob(await self.stat(name), Bytes(b""))
            headers.append((b"Range", b"bytes=%d-%d" % (start, stop - 1)))
        try:
            response = await self._ask("GET", f"/blob/{name}", headers)
        except Unsatisfiable:
            return Blob(await self.stat(name), Bytes(b""))
        info = info_of(name, response)
        if byte_range is not None and response.status == 200:  # it knows no ranges
            return Blob(info, Bytes((await response.body.read(ANSWER_MAX))[start:stop]))
        data = response.body.whole
        if data is None:
            size = response.body.length
            if size is None:  # as Go's net/http sends what it did not measure
                data = await response.body.read(ANSWER_MAX)
                return Blob(replace(info, size=len(data)), Bytes(data))
            body = response.body
            pieces = Stream(size, lambda: aiter(body), rereadable=False, fill=body.receive_into)
            return Blob(info, pieces)
        self._check(info, data, part=response.status == 206)
        return Blob(info, Bytes(data))

    def _check(self, info: BlobInfo, data: bytes, *, part: bool) -> None:
        # An object or chunk is checked against its name by whoever reads it; the rest here.
        if (
            part
            or info.checksum == NO_CHECKSUM
            or (info.kind == Kind.BLOB and (is_object_id(info.name) or is_chunk_name(info.name)))
        ):
            return
        if checksum_of(data) != info.checksum:
            raise Corrupt(f"{self._address} sent {info.name} with another checksum than it has")

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        check_name(name)
        also = "?tombstones=1" if tombstones and self.capabilities.stamps else ""
        return info_of(name, await self._ask("HEAD", f"/blob/{name}{also}"))

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        check_name(name)
        self._needs_stamps("touched")
        item = {
            "name": name,
            "stamp": format_stamp(stamp),
            "checksum": checksum.hex(),
            "metadata": b64encode(metadata.check(meta)).decode(),
        }
        put = put_of(name, await self._line("/blobs/touch", {"touches": [item]}))
        if isinstance(put, Failed):
            raise put.error
        return put

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        check_name(name)
        self._needs_stamps("deleted")
        headers = []
        if stamp is not None:
            headers.append((b"X-Dolmen-Stamp", format_stamp(stamp).encode()))
        response = await self._ask("DELETE", f"/blob/{name}", headers)
        self._note_durable(response)
        return deleted(response.headers, await object_of(response, reads=False))

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        check_name(name)
        self._needs_stamps("removed")
        return (await self.remove_many([Remove(name, if_stamp)], min_age=min_age))[0]

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """See `BlobStore.remove_many`."""
        self._needs_stamps("removed")
        for name, _ in removes:
            check_name(name)
        items = [{"name": name, "stamp": format_stamp(stamp)} for name, stamp in removes]
        order: dict[str, object] = {"removes": items, "min_age": min_age}
        if epoch is not None:
            order["epoch"] = epoch
        body = json.dumps(order).encode()
        response = await self._ask("POST", "/blobs/remove", (), body, reads=False)
        lines = [line async for line in lines_of(response, reads=False)]
        refused = [told(line) for line in lines if line.get("status") == "refused"]
        if refused:
            raise refused[0]
        if [line.get("name") for line in lines] != [name for name, _ in removes]:
            raise OutcomeUnknown(f"{self._address} did not answer for every name to remove")
        return [line.get("removed") is True for line in lines]

    def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        if self.capabilities.stamps:
            return list_all(self._ask, partitions, after, prefix, tombstones=tombstones)
        return self._list_plainly(set(partitions), after, prefix)

    async def _list_plainly(
        self, partitions: set[int], after: str | None, prefix: str
    ) -> AsyncIterator[BlobInfo]:
        """List a server that gives names only, in any order, all at once."""
        response = await self._ask("GET", "/blobs")
        names = names_of(await response.body.read(1 << 31))
        start = (partition_of(after), after) if after is not None else (-1, "")
        for partition, name in sorted((partition_of(name), name) for name in names):
            if (partition, name) <= start or not name.startswith(prefix):
                continue
            if partition in partitions:
                yield BlobInfo(name, -1, Kind.BLOB, 0, NO_CHECKSUM)

    async def quarantined(self) -> AsyncIterator[str]:
        """See `BlobStore.quarantined`."""
        if not self.capabilities.stamps:
            return
        async with await self._ask("GET", "/quarantined") as response:
            async for line in lines_of(response, reads=True):
                yield check_name(str(line.get("name")))

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        self._needs_stamps("compared by digests")
        known = self._digests
        condition = [(b"If-None-Match", known[0])] if known is not None else []
        response = await self._ask("GET", "/digests", condition)
        if response.status == 304 and known is not None:
            return known[1]
        digests = Digests.decode(await response.body.read(ANSWER_MAX))
        self._digests = response.headers.get(b"etag", b""), digests
        return digests

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        if self.capabilities.stamps:
            return read_many(self._ask, self._address, names)
        return super().get_many(names)

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """See `BlobStore.verify_many`: no data is sent."""
        if self.capabilities.stamps:
            return verify_all(self._ask, self._address, names)
        return super().verify_many(names)

    def put_many(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.put_many`. Two batches are under way at once."""
        if self.capabilities.stamps:
            return write_many(self, self._ask, blobs)
        return super().put_many(blobs)

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        self._needs_stamps("given notes")
        order = {"key": key, "value": b64encode(value).decode()}
        await self._ask("POST", "/notes", (), json.dumps(order).encode())

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        self._needs_stamps("asked for notes")
        return notes_of(await object_of(await self._ask("GET", "/notes")))

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        if not self.capabilities.stamps:
            await self._ask("GET", "/alive")
            return Condition()
        said = await object_of(await self._ask("GET", "/status"))
        return Condition(
            said.get("free_bytes"),
            said.get("total_bytes"),
            writable=said.get("writable", True),
            reasons=said.get("degraded", []),
            remarks=said.get("remarks", []),
        )

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        await self._client.close()

    # What it is, and how it asks

    async def learn(self) -> None:
        """Ask what the server is; raises `Unavailable` where it can't be asked."""
        self.capabilities, self._known = await _capabilities(self._address, self._client), True

    def _note_durable(self, response: ClientResponse) -> None:
        durable = response.headers.get(b"x-dolmen-durable") != b"no"
        if durable is not self.capabilities.durable:
            self.capabilities = replace(self.capabilities, durable=durable)

    def _needs_stamps(self, what: str) -> None:
        if not self.capabilities.stamps:
            raise ReadOnly(f"{self._address} is a plain sos blob server; it can't be {what}")

    async def _ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | memoryview | Streamed | None = None,
        *,
        expect_continue: bool = False,
        reads: bool | None = None,
    ) -> ClientResponse:
        if not self._known:
            await self.learn()
            if not self.capabilities.stamps:  # nothing of the kind was thought of above
                raise Unavailable(f"{self._address} is a plain sos blob server, as it now says")
        response = await self._client.request(
            method, target, headers, body, expect_continue=expect_continue, reads=reads
        )
        if response.status >= 400:
            raise await error_of(self._address, response)
        return response

    async def _line(self, target: str, order: dict[str, object]) -> dict[str, Any]:
        response = await self._ask("POST", target, (), json.dumps(order).encode(), reads=False)
        async for line in lines_of(response, reads=False):
            if line.get("status") == "refused":
                raise told(line)
            return line
        raise OutcomeUnknown(f"{self._address} gave no answer to {target}")


async def _to_the_end(payload: Payload) -> AsyncIterator[Piece]:
    """The pieces, the last one only when the payload has ended well.

    A payload may fail after its last byte; the far server must not have all of it then.
    """
    held: Piece | None = None
    async for piece in payload:
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


async def open_url(url: str) -> RemoteStore:
    """The blob server at `http://host:port`; asks it what it is.

    A server that can't be asked now counts as a dolmen blob server: it may come up
    later, and is asked then, before anything else. Raises `BadSetting` for an address that is none.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise BadSetting(f"{url!r} has no valid port: {error}") from error
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise BadSetting(f"{url!r} is no blob server's address: write http://host:port")
    client = Client(parts.hostname, port or (443 if parts.scheme == "https" else 80))
    store = RemoteStore(f"{parts.hostname}:{port}" if port else parts.hostname, client)
    with suppress(DolmenError, TimeoutError):
        async with asyncio.timeout(_OPENING):
            await store.learn()
    return store


async def _capabilities(address: str, client: Client) -> Capabilities:
    response = await client.request("GET", "/status")
    if response.status in (404, 405):
        await response.body.read(ANSWER_MAX)
        return _PLAIN
    if response.status >= 400:
        raise await error_of(address, response)
    try:
        return Capabilities(**(await object_of(response))["capabilities"])
    except (KeyError, TypeError) as error:
        raise Unavailable(f"{address} does not say what it keeps: {error}") from error
