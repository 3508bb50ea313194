"""Manifests go last, and only when the chunks they name are where they should be.

The chunks were copied before, in list order. But a manifest may have been written meanwhile,
with chunks whose place in the order had been passed, or a chunk could not be copied. So before
a manifest goes, the destination is asked for its chunks: what it lacks is copied now, and what
is old is touched, because until now no manifest may have named it and garbage collection be
about to take it. The manifest stays behind if a chunk can't be copied. A chunk that the source
lacks as well does not hold it up: it is in another group or lost, and either way the
destination ends up with all the source has.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from dolmen.cluster.manifest import decode
from dolmen.errors import Corrupt, DolmenError, NotFound
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX, partition_of
from dolmen.payload import read_whole
from dolmen.replication.compare import Difference
from dolmen.replication.copy import Copier
from dolmen.store import BlobInfo, Write
from dolmen.stores.base import UnderWay
from dolmen.stores.retrying import Retrying, ServerFailed

T = TypeVar("T")

GRACE = 24 * 3600
"""Seconds for which garbage collection leaves a chunk alone that no manifest names."""
_AT_ONCE = 64


class Chunks:
    """Brings the chunks of manifests that are about to be copied."""

    def __init__(self, copier: Copier, partitions: Collection[int]) -> None:
        self._copier, self._partitions = copier, partitions

    async def ready(self, manifests: Sequence[Difference]) -> Sequence[Difference]:
        """Copy missing chunks; returns the manifests that may go. Raises `ServerFailed`."""
        return [
            each
            for each in manifests
            # To be touched means that the destination has this very manifest.
            if each.touch or await self._has_chunks(each.info.name)
        ]

    async def _has_chunks(self, name: str) -> bool:
        copier = self._copier
        try:
            blob = await copier.source.get(name)
            chunks = decode(await read_whole(blob.payload)).chunks
        except ServerFailed:
            raise
        except DolmenError:
            return True  # copying it meets the same trouble and reports it
        wanted = [each for each in dict.fromkeys(chunks) if partition_of(each) in self._partitions]
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            found = await _at_once(partial(_renewed, copier.destination), some)
            lacking = [chunk for chunk, there in zip(some, found, strict=True) if not there]
            here = await _at_once(partial(_stat, copier.source), lacking)
            refused = await copier.copy([Difference(info, touch=False) for info in here if info])
            if refused:
                why = Corrupt(f"its chunk {refused[0]} could not be copied")
                copier.report.refuse(name, why, reason="ChunkMissing")
                return False
        return True


async def _at_once(ask: Callable[[str], Awaitable[T]], names: Sequence[str]) -> Sequence[T]:
    async with UnderWay[T]() as under_way:
        for name in names:
            under_way.add(ask(name))
        return [await under_way.next() for _ in names]


async def _renewed(destination: Retrying, chunk: str) -> bool:
    """Whether the destination has this chunk sound, and young from now on."""
    try:
        info = await destination.stat(chunk)
        if not destination.capabilities.stamps:
            return True
        half = chunk[len(CHUNK_PREFIX) :][: 2 * CHECKSUM_SIZE]
        if info.checksum.hex() != half:
            return False
        if time.time() - info.arrived >= GRACE / 2:
            await destination.write(
                Write.touch(chunk, stamp=info.stamp, checksum=info.checksum, metadata=info.metadata)
            )
    except (NotFound, Corrupt):
        return False
    return True


async def _stat(source: Retrying, chunk: str) -> BlobInfo | None:
    """What the source has of a chunk. Of a damaged one only the name: copying it reports it."""
    try:
        return await source.stat(chunk)
    except NotFound:
        return None
    except Corrupt:
        return BlobInfo(chunk, 0, 0, 0, b"")
