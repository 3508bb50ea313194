"""Many blobs at once: small ones are looked up, read, and committed together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from dolmen.errors import DolmenError
from dolmen.names import checksum_of
from dolmen.payload import Payload
from dolmen.record import Kind, block_sums
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Put
from dolmen.stores.old_bulk import check_travels, get_any, put_any
from dolmen.stores.records import Framed
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.group import Group
from dolmen.stores.volume.reads import Reader
from dolmen.stores.volume.write import Op, Write, compare

LookUp = Callable[[Sequence[str]], dict[str, Entry]]
"""The entries of those of the names that have one."""
SMALL = 16_384
"""Blobs up to this many bytes are read together."""
LOOKED_UP = 256
"""Names that are looked up, and small blobs read, in one go: 4 MiB at most."""
BLOBS = 2048
"""Blobs under way before their answers are waited for."""
BYTES = 32 << 20


async def get_many(
    store: BlobStore, look_up: LookUp, reader: Reader, names: Sequence[str]
) -> AsyncIterator[Blob | Failed]:
    """Read blobs and tombstones, in the order asked.

    Whatever is not a sound small blob that can be read at once is read by itself.
    """
    for first in range(0, len(names), LOOKED_UP):
        some = names[first : first + LOOKED_UP]
        found = look_up(some)
        small = [
            (name, entry)
            for name, entry in found.items()
            if entry.length <= SMALL and entry.kind <= Kind.MANIFEST and not entry.damaged
        ]
        read = await reader.read_many(small)
        for name in some:
            body = read.get(name)
            if body is None:
                yield await get_any(store, name)
            else:
                yield Blob(found[name].info(name), Framed(*body))


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
            under_way.append(
                (blob.info.name, group.submit(_write_of(blob.info, blob.payload, data)))
            )
        except DolmenError as error:
            under_way.append((blob.info.name, error))
        size += len(data)
        if len(under_way) >= BLOBS or size >= BYTES:
            while under_way:
                yield await _answer(*under_way.popleft())
            size = 0
    while under_way:
        yield await _answer(*under_way.popleft())


def _write_of(info: BlobInfo, payload: Payload, data: bytes | memoryview) -> Write:
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
        sums=payload.sums if isinstance(payload, Framed) else block_sums(data),
        length=len(data),
    )


async def _answer(name: str, under_way: asyncio.Future[Put] | DolmenError) -> Put | Failed:
    if isinstance(under_way, DolmenError):
        return Failed(name, under_way)
    try:
        return await under_way
    except DolmenError as error:
        return Failed(name, error)
