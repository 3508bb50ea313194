"""A plain sos blob server as a store: names and bytes, and nothing else.

It has no stamps (they count as 0), no tombstones, no touches and no digests: a delete, a touch
or a removal is refused with `ReadOnly`. It is used by plain list, HEAD, GET and POST, as Go's
net/http answers them. Bytes are checked against names that are digests by whoever reads them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import ReadOnly, Unavailable
from dolmen.http import Client, ClientResponse
from dolmen.names import check_name, partition_of
from dolmen.payload import Bytes
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
from dolmen.stores.responses import ANSWER_MAX, NONSENSE, ask, body_of, payload_of, senseless

_LIST_MAX = 1 << 31


class SosStore(OneByOne):
    """The sos blob server at an address."""

    capabilities = Capabilities(
        durable=True, largest=1 << 31, digests=False, ordered=False, conflicts=False, stamps=False
    )

    def __init__(self, address: str, client: Client) -> None:
        self._address, self._client = address, client
        self._ask = partial(ask, client, address)

    async def write(self, write: Write) -> Put:
        check(write)
        if write.kind == Kind.MANIFEST:  # it would be taken for the object's own content
            raise self._refusal("given manifests, so it keeps no large objects")
        if write.kind != Kind.BLOB:
            raise self._refusal("told to delete or touch")
        headers = [*metadata.decode(write.metadata)]
        body = body_of(write.payload)
        response = await self._ask("POST", f"/blob/{write.name}", headers, body)
        await response.body.read(ANSWER_MAX)
        return Put(Outcome.CREATED if response.status == 201 else Outcome.UNCHANGED, 0)

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """A range is cut out of all of it."""
        response = await self._ask("GET", f"/blob/{check_name(name)}")
        if byte_range is None and response.body.length is not None:
            payload = payload_of(self._address, response.body)
            return Blob(_info(name, payload.size, response), payload)
        data = await response.body.read(self.capabilities.largest)
        part = data[slice(*byte_range)] if byte_range else data
        return Blob(_info(name, len(data), response), Bytes(part))

    async def stat(self, name: str) -> BlobInfo:
        """A length that HEAD does not say is found by reading it."""
        response = await self._ask("HEAD", f"/blob/{check_name(name)}")
        length = response.headers.get(b"content-length")
        if length is None:
            return (await self.get(name)).info
        return _info(name, int(length), response)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """Names alone, which come in any order, all at once."""
        if listing.quarantined:
            return
        response = await self._ask("GET", "/blobs")
        body = await response.body.read(_LIST_MAX)
        try:
            names = {check_name(name) for name in json.loads(body)}
        except NONSENSE as error:
            raise senseless(self._address, error, Unavailable) from error
        wanted, after = set(listing.partitions), listing.after
        start = (partition_of(after), after) if after is not None else (-1, "")
        for place in sorted((partition_of(name), name) for name in names):
            partition, name = place
            if place > start and name.startswith(listing.prefix) and partition in wanted:
                yield BlobInfo(name, -1, Kind.BLOB, 0, NO_CHECKSUM)

    async def remove_many(
        self,
        removes: Sequence[Remove],  # noqa: ARG002 - the contract's
        *,
        min_age: float = 0,  # noqa: ARG002
        epoch: int | None = None,  # noqa: ARG002
    ) -> Sequence[bool]:
        raise self._refusal("told to remove anything")

    async def digests(self) -> Digests:
        raise self._refusal("compared by digests")

    async def note(self, key: str, value: bytes) -> None:  # noqa: ARG002 - the contract's
        raise self._refusal("given notes")

    async def notes(self) -> dict[str, bytes]:
        raise self._refusal("asked for notes")

    async def condition(self) -> Condition:
        await self._ask("GET", "/alive")
        return Condition()

    async def aclose(self) -> None:
        await self._client.close()

    def _refusal(self, what: str) -> ReadOnly:
        return ReadOnly(f"{self._address} is a plain sos blob server; it can't be {what}")


def _info(name: str, size: int, response: ClientResponse) -> BlobInfo:
    pairs = [pair for pair in response.headers.items() if pair[0].startswith(b"x-")]
    return BlobInfo(name, size, Kind.BLOB, 0, NO_CHECKSUM, metadata.encode(pairs))
