"""Blobs in numbers: under 64 hex digits, in no order, with bytes of their own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import uvloop

from bench.figures import NotMeasured
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.replication import replicate
from dolmen.stamps import Clock
from dolmen.store import Blob, BlobInfo, BlobStore, Failed
from dolmen.stores import open_store
from dolmen.testing import calls


def name_of(number: int) -> str:
    """The name of the blob with this number."""
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()


def fill(volume: Path, count: int, *, size: int) -> None:
    """Make a volume with `count` blobs of `size` bytes."""
    uvloop.run(add(f"volume:{volume}", range(count), size=size))


async def add(url: str, numbers: range, *, size: int) -> None:
    """Put the blobs with these numbers into the store at a URL."""
    async with aclosing(await open_store(url)) as store:
        await put(store, numbers, size=size)


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


async def copied(source: BlobStore, destination: BlobStore, expected: int) -> float:
    """Seconds of a run of replication that has so many blobs to copy, connections and all."""
    start = time.perf_counter()
    report = await replicate(source, destination)
    seconds = time.perf_counter() - start
    if not report.complete or report.copied != expected:
        raise NotMeasured(f"{expected} blobs were to be copied, but the report says {report}")
    return seconds
