"""Short forms of the contract's calls, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from dolmen.errors import NotFound
from dolmen.payload import Payload
from dolmen.record import Kind
from dolmen.store import (
    ALL_PARTITIONS,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    BlobStore,
    Failed,
    Listing,
    Put,
    Remove,
    Write,
)


async def put(
    store: BlobStore,
    name: str,
    payload: Payload,
    *,
    meta: bytes = b"",
    stamp: int | None = None,
    kind: Kind = Kind.BLOB,
    checksum: bytes | None = None,
) -> Put:
    """Write a blob or manifest."""
    return await store.write(Write(name, payload, kind, meta, stamp, checksum))


async def delete(store: BlobStore, name: str, *, stamp: int | None = None) -> Put:
    """Write a tombstone."""
    return await store.write(Write.tombstone(name, stamp=stamp))


async def touch(
    store: BlobStore, name: str, *, stamp: int, checksum: bytes, meta: bytes = b""
) -> Put:
    """Write a touch."""
    return await store.write(Write.touch(name, stamp=stamp, checksum=checksum, metadata=meta))


async def remove(store: BlobStore, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
    """Drop one copy."""
    return (await store.remove_many([Remove(name, if_stamp)], min_age=min_age))[0]


def put_many(store: BlobStore, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
    """Write many blobs as they are."""

    async def writes() -> AsyncIterator[Write]:
        async for blob in blobs:
            yield Write.copy(blob)

    return store.write_many(writes())


def listing(
    store: BlobStore,
    *,
    partitions: Iterable[int] = ALL_PARTITIONS,
    after: str | None = None,
    prefix: str = "",
    tombstones: bool = False,
) -> AsyncIterator[BlobInfo]:
    """List some of a store."""
    chosen = partitions if isinstance(partitions, range) else list(partitions)
    return store.list(Listing(chosen, after, prefix, tombstones))


async def quarantined(store: BlobStore) -> AsyncIterator[str]:
    """The names of copies known to be damaged."""
    async for info in store.list(Listing(quarantined=True)):
        yield info.name


async def current(store: BlobStore, name: str) -> BlobInfo:
    """What is current under a name, a tombstone too; raises `NotFound` for nothing."""
    try:
        return await store.stat(name)
    except NotFound as absent:
        if not absent.stamp:
            raise
        return BlobInfo(name, 0, Kind.TOMBSTONE, absent.stamp, NO_CHECKSUM)
