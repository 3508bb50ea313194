"""Many blobs from another store: small ones share commits, none waits for the one before."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from dolmen.errors import DolmenError
from dolmen.names import checksum_of
from dolmen.record import Kind, block_sums
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Put
from dolmen.stores.bulk import check_travels, put_any
from dolmen.stores.volume.group import Group
from dolmen.stores.volume.write import Op, Write, compare

BLOBS = 2048
"""Blobs under way before their answers are waited for."""
BYTES = 32 << 20


async def put_many(
    store: BlobStore, group: Group, blobs: AsyncIterator[Blob]
) -> AsyncIterator[Put | Failed]:
    """Put blobs, and tombstones, with the stamps they have; the answers come in their order."""
    under_way: deque[tuple[str, asyncio.Future[Put] | DolmenError]] = deque()
    size = 0
    async for blob in blobs:
        data = blob.payload.whole
        if data is None:  # it is read before the next one may be asked for
            while under_way:
                yield await _answer(*under_way.popleft())
            yield await put_any(store, blob)
            continue
        try:
            check_travels(blob)
            under_way.append((blob.info.name, group.submit(_write_of(blob.info, data))))
        except DolmenError as error:
            under_way.append((blob.info.name, error))
        size += len(data)
        if len(under_way) >= BLOBS or size >= BYTES:
            while under_way:
                yield await _answer(*under_way.popleft())
            size = 0
    while under_way:
        yield await _answer(*under_way.popleft())


def _write_of(info: BlobInfo, data: bytes | memoryview) -> Write:
    """The write of a blob or tombstone that comes from another store."""
    if info.kind == Kind.TOMBSTONE:
        return Write(Op.DELETE, info.name, stamp=info.stamp)
    checksum = checksum_of(data)
    compare(info.name, checksum, info.checksum)
    return Write(
        Op.PUT,
        info.name,
        stamp=info.stamp,
        kind=info.kind,
        checksum=checksum,
        metadata=info.metadata,
        data=data,
        sums=block_sums(data),
        length=len(data),
    )


async def _answer(name: str, under_way: asyncio.Future[Put] | DolmenError) -> Put | Failed:
    if isinstance(under_way, DolmenError):
        return Failed(name, under_way)
    try:
        return await under_way
    except DolmenError as error:
        return Failed(name, error)
