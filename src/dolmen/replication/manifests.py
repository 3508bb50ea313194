"""The chunks that manifests name: whether a store has them, and where to read a manifest.

A manifest goes to a store last, when its chunks are there, and young: until then no manifest may
have named them, and garbage collection be about to take them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from dolmen.cluster.manifest import MANIFEST_MAX, decode
from dolmen.errors import Corrupt, DolmenError, NotFound
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.store import NO_CHECKSUM, Blob, BlobStore, Write
from dolmen.stores.base import UnderWay

GRACE = 24 * 3600
"""Seconds for which garbage collection leaves a chunk alone that no manifest names."""
AT_ONCE = 64


async def chunks_in(manifest: Blob) -> Sequence[str]:
    """The chunks that a manifest names, each once; `Corrupt` where it is none.

    Its payload is in memory then: one that is streamed may be read only once.
    """
    if manifest.payload.size > MANIFEST_MAX:
        raise Corrupt(f"no manifest has {manifest.payload.size} bytes")
    if manifest.payload.whole is None:
        manifest.payload = Bytes(await read_whole(manifest.payload))
    return [*dict.fromkeys(decode(await read_whole(manifest.payload)).chunks)]


async def chunks_of(name: str, holders: Sequence[BlobStore]) -> Sequence[str]:
    """The chunks that a manifest names, from whichever of its holders has it sound.

    None where it was replaced meanwhile: what took its place has chunks of its own, which are
    younger than any grace time. Raises what the last of them answered.
    """
    failed: DolmenError | None = None
    for store in holders:
        try:
            blob = await store.get(name)
            return await chunks_in(blob) if blob.info.kind == Kind.MANIFEST else ()
        except NotFound:
            continue
        except DolmenError as error:
            failed = error
    if failed is not None:
        raise failed
    return ()


async def missing(store: BlobStore, chunks: Sequence[str]) -> Sequence[str]:
    """Those of these chunks that a store does not have sound; the others are young from now on."""
    lacking: list[str] = []
    for at in range(0, len(chunks), AT_ONCE):
        some = chunks[at : at + AT_ONCE]
        async with UnderWay[bool]() as under_way:
            for chunk in some:
                under_way.add(_renewed(store, chunk))
            lacking += [chunk for chunk in some if not await under_way.next()]
    return lacking


async def _renewed(store: BlobStore, chunk: str) -> bool:
    try:
        info = await store.stat(chunk)
        if not store.capabilities.stamps:
            return True
        half = bytes.fromhex(chunk[len(CHUNK_PREFIX) :][: 2 * CHECKSUM_SIZE])
        if info.checksum not in (half, NO_CHECKSUM):
            return False
        if time.time() - info.arrived >= GRACE / 2:
            await store.write(
                Write.touch(chunk, stamp=info.stamp, checksum=info.checksum, metadata=info.metadata)
            )
    except (NotFound, Corrupt):
        return False
    return True
