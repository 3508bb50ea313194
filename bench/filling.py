"""Blobs in numbers: under 64 hex digits, in no order, with bytes of their own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from bench.figures import NotMeasured
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import Blob, BlobInfo, BlobStore, Failed
from dolmen.stores import open_store
from dolmen.testing import calls


def name_of(number: int) -> str:
    """The name of the blob with this number."""
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()


def fill(volume: Path, count: int, *, size: int) -> None:
    """Make a volume with `count` blobs of `size` bytes."""

    async def filled() -> None:
        store = await open_store(f"volume:{volume}")
        try:
            await put(store, range(count), size=size)
        finally:
            await store.aclose()

    uvloop.run(filled())


async def put(store: BlobStore, numbers: range, *, size: int) -> None:
    """Put the blobs with these numbers, `size` bytes each."""
    async for answer in calls.put_many(store, _blobs(numbers, size)):
        if isinstance(answer, Failed):
            raise NotMeasured(f"{answer.name} could not be put: {answer.error}")


async def _blobs(numbers: range, size: int) -> AsyncIterator[Blob]:
    clock, filler = Clock(), bytes(size - 8)
    for number in numbers:
        data = number.to_bytes(8, "big") + filler
        checksum = checksum_of(data)
        yield Blob(BlobInfo(name_of(number), size, Kind.BLOB, clock.next(), checksum), Bytes(data))
