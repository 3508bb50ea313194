"""Bulk reading and writing for stores that have nothing better than one at a time.

A store inherits `OneByOne` and gets `get_many` and `put_many` with a window of
operations under way and the answers in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from dolmen import metadata
from dolmen.errors import BadContent, DolmenError, NotFound
from dolmen.names import check_name
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob, BlobStore, Failed, Put

WINDOW = 64


class OneByOne:
    """`get_many` and `put_many` by way of `get`, `stat`, `put` and `delete`."""

    async def get_many(self: BlobStore, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        for name in names:
            yield await get_any(self, name)

    async def put_many(self: BlobStore, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.put_many`. At most `WINDOW` puts are under way."""
        under_way: deque[asyncio.Future[Put | Failed]] = deque()
        try:
            async for blob in blobs:
                under_way.append(asyncio.ensure_future(put_any(self, blob)))
                if len(under_way) >= WINDOW or blob.payload.whole is None:
                    # A payload that is streamed must be read before the next one is asked for.
                    while under_way:
                        yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def get_any(store: BlobStore, name: str) -> Blob | Failed:
    """Read what stands under a name, a tombstone too."""
    try:
        return await store.get(name)
    except NotFound as absent:
        if not absent.stamp:
            return Failed(name, absent)
    except DolmenError as error:
        return Failed(name, error)
    try:
        info = await store.stat(name, tombstones=True)
    except DolmenError as error:
        return Failed(name, error)
    if info.kind != Kind.TOMBSTONE:  # it was written again in between
        return await get_any(store, name)
    return Blob(info, Bytes(b""))


def check_travels(blob: Blob) -> None:
    """Raise what `put_many` refuses a blob for before anything is asked of the store."""
    info = blob.info
    check_name(info.name)
    metadata.check(info.metadata)
    if info.kind == Kind.TOMBSTONE and (info.metadata or info.size or blob.payload.size):
        raise BadContent(f"a tombstone has neither data nor metadata; that of {info.name} has")


async def put_any(store: BlobStore, blob: Blob) -> Put | Failed:
    """Write a blob, or the tombstone it is, with the stamp it has."""
    info = blob.info
    try:
        check_travels(blob)
        if info.kind == Kind.TOMBSTONE:
            return await store.delete(info.name, stamp=info.stamp)
        return await store.put(
            info.name,
            blob.payload,
            meta=info.metadata,
            stamp=info.stamp,
            kind=Kind(info.kind),
            checksum=info.checksum if any(info.checksum) else None,  # a plain server knows none
        )
    except DolmenError as error:
        return Failed(info.name, error)
