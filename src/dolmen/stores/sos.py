"""A plain sos blob server as a store: names and bytes, and nothing else.

It has no stamps (they count as 0), no tombstones, no touches and no digests: a delete, a touch
or a removal is refused with `ReadOnly`. It is used by plain list, HEAD, GET and POST, as Go's
net/http answers them. Bytes are checked against names that are digests by whoever reads them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import DolmenError, InvalidName, NotFound, ReadOnly, Unavailable
from dolmen.http import Client, ClientResponse, Streamed
from dolmen.names import check_name, partition_of
from dolmen.payload import Bytes, Stream, to_the_end
from dolmen.record import Kind
from dolmen.resolve import check
from dolmen.store import (
    EVERYTHING,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Listing,
    Outcome,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne
from dolmen.stores.responses import NONSENSE

_ANSWER_MAX = 64 << 20
_LIST_MAX = 1 << 31


class SosStore(OneByOne):
    """The sos blob server at an address."""

    capabilities = Capabilities(
        durable=True, largest=1 << 31, digests=False, ordered=False, conflicts=False, stamps=False
    )

    def __init__(self, address: str, client: Client) -> None:
        self._address, self._client = address, client

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`."""
        check(write)
        if write.kind == Kind.MANIFEST:  # it would be taken for the object's own content
            raise self._refusal("given manifests, so it keeps no large objects")
        if write.kind != Kind.BLOB:
            raise self._refusal("told to delete or touch")
        payload = write.payload
        whole = payload.whole
        body = whole if whole is not None else Streamed(to_the_end(payload), payload.size)
        headers = [*metadata.decode(write.metadata)]
        response = await self._ask("POST", f"/blob/{write.name}", headers, body)
        await response.body.read(_ANSWER_MAX)
        return Put(Outcome.CREATED if response.status == 201 else Outcome.UNCHANGED, 0)

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`. A range is cut out of all of it."""
        check_name(name)
        response = await self._ask("GET", f"/blob/{name}")
        data = response.body.whole
        if data is None and (response.body.length is None or byte_range is not None):
            data = await response.body.read(self.capabilities.largest)
        if data is None:
            size, body = response.body.length or 0, response.body
            pieces = Stream(size, lambda: aiter(body), rereadable=False, fill=body.receive_into)
            return Blob(_info(name, size, response), pieces)
        info = _info(name, len(data), response)
        return Blob(info, Bytes(data[slice(*byte_range)] if byte_range else data))

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`. A length that HEAD does not say is found by reading it."""
        check_name(name)
        response = await self._ask("HEAD", f"/blob/{name}")
        length = response.headers.get(b"content-length")
        if length is None:
            return (await self.get(name)).info
        return _info(name, int(length), response)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`: names alone, which come in any order, all at once."""
        if listing.quarantined:
            return
        response = await self._ask("GET", "/blobs")
        body = await response.body.read(_LIST_MAX)
        try:
            names = {check_name(name) for name in json.loads(body)}
        except NONSENSE as error:
            raise Unavailable(
                f"the list of {self._address} makes no sense: {error!r:.200}"
            ) from error
        wanted = set(listing.partitions)
        after = listing.after
        start = (partition_of(after), after) if after is not None else (-1, "")
        for partition, name in sorted((partition_of(name), name) for name in names):
            if (
                (partition, name) > start
                and name.startswith(listing.prefix)
                and partition in wanted
            ):
                yield BlobInfo(name, -1, Kind.BLOB, 0, NO_CHECKSUM)

    async def remove_many(
        self,
        removes: Sequence[Remove],  # noqa: ARG002 - the contract's
        *,
        min_age: float = 0,  # noqa: ARG002
        epoch: int | None = None,  # noqa: ARG002
    ) -> Sequence[bool]:
        """See `BlobStore.remove_many`: refused."""
        raise self._refusal("told to remove anything")

    async def digests(self) -> Digests:
        """See `BlobStore.digests`: refused."""
        raise self._refusal("compared by digests")

    async def note(self, key: str, value: bytes) -> None:  # noqa: ARG002 - the contract's
        """See `BlobStore.note`: refused."""
        raise self._refusal("given notes")

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`: refused."""
        raise self._refusal("asked for notes")

    async def condition(self) -> Condition:
        """See `BlobStore.condition`: whether it answers."""
        await self._ask("GET", "/alive")
        return Condition()

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        await self._client.close()

    def _refusal(self, what: str) -> ReadOnly:
        return ReadOnly(f"{self._address} is a plain sos blob server; it can't be {what}")

    async def _ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | memoryview | Streamed | None = None,
    ) -> ClientResponse:
        response = await self._client.request(method, target, headers, body)
        status = response.status
        if status < 400:
            return response
        text = bytes(await response.body.read(65_536)).decode("utf-8", "replace").strip()
        message = f"{self._address}: {text[:200] or f'HTTP {status}'}"
        error: DolmenError = Unavailable(message)
        if status == 404:
            error = NotFound(message)
        elif status == 400:
            error = InvalidName(message)
        raise error


def _info(name: str, size: int, response: ClientResponse) -> BlobInfo:
    pairs = [pair for pair in response.headers.items() if pair[0].startswith(b"x-")]
    return BlobInfo(name, size, Kind.BLOB, 0, NO_CHECKSUM, metadata.encode(pairs))
