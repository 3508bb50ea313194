"""Manifests: they go last, and only when the chunks they name are where they should be.

The chunks were copied before, in list order. But a manifest may have been written
while that went on, with chunks whose place in the order had been passed, or a chunk
could not be copied. So before a manifest goes, the destination is asked for its
chunks, and what it lacks is copied now. What it has and is old is touched, for until now
no manifest may have named it, and garbage collection be about to take it. The manifest
stays behind if one can't be. A chunk that the source lacks as well does not hold it up:
it lies in another group or is lost, and either way the destination ends up with all the
source has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from dolmen.cluster.manifest import decode
from dolmen.cluster.upload import GRACE
from dolmen.errors import Corrupt, DolmenError, NotFound
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX, partition_of
from dolmen.payload import read_whole
from dolmen.replication.compare import Difference
from dolmen.replication.copy import Copier
from dolmen.replication.patience import Pause, Side, Stopped, ask
from dolmen.replication.report import Report
from dolmen.store import BlobInfo, BlobStore, Write

AT_ONCE = 64
"""Chunks asked for at once."""


class Chunks:
    """Sees to the chunks of manifests that are about to be copied."""

    def __init__(
        self,
        source: BlobStore,
        destination: BlobStore,
        partitions: Collection[int],
        copier: Copier,
        report: Report,
        pause: Pause,
    ) -> None:
        self._source = source
        self._destination = destination
        self._partitions = partitions
        self._copier = copier
        self._report = report
        self._pause = pause

    async def see_to(self, manifests: Sequence[Difference]) -> list[Difference]:
        """Copy missing chunks; returns the manifests that may go. Raises `Stopped`."""
        return [
            each
            for each in manifests
            # To be touched means that the destination has this very manifest.
            if each.touch or await self._chunks_stand(each.info.name)
        ]

    async def _chunks_stand(self, name: str) -> bool:
        try:
            blob = await self._source.get(name)
            chunks = decode(await read_whole(blob.payload)).chunks
        except DolmenError:
            return True  # copying it meets the same trouble and reports it
        wanted = [
            chunk for chunk in dict.fromkeys(chunks) if partition_of(chunk) in self._partitions
        ]
        for at in range(0, len(wanted), AT_ONCE):
            missing = await self._missing(wanted[at : at + AT_ONCE])
            left = await self._copier.bring([Difference(info, touch=False) for info in missing])
            if left:
                self._report.refuse(
                    name, Corrupt(f"its chunk {left[0]} could not be copied"), reason="ChunkMissing"
                )
                return False
        return True

    async def _missing(self, chunks: Sequence[str]) -> list[BlobInfo]:
        """Those that the source has and the destination lacks."""
        there = await stat_all(self._destination, chunks, "destination", self._pause)
        lacking = [
            chunk
            for chunk, info in zip(chunks, there, strict=True)
            if info is None
            or not _is_whole(chunk, info, self._destination)
            or not await renewed(self._destination, info, self._pause)
        ]
        here = await stat_all(self._source, lacking, "source", self._pause)
        return [info for info in here if info is not None]


async def renewed(store: BlobStore, info: BlobInfo, pause: Pause) -> bool:
    """Make a chunk young that no manifest may have named so far: it could be collected now.

    False where it is not there any more. Raises `Stopped`.
    """
    if not store.capabilities.stamps or time.time() - info.arrived < GRACE / 2:
        return True
    try:
        await ask(
            lambda: store.write(
                Write.touch(
                    info.name, stamp=info.stamp, checksum=info.checksum, metadata=info.metadata
                )
            ),
            side="destination",
            pause=pause,
        )
    except Stopped as stopped:
        if isinstance(stopped.error, NotFound):  # it went just now
            return False
        raise
    return True


async def stat_all(
    store: BlobStore, names: Sequence[str], side: Side, pause: Pause
) -> list[BlobInfo | None]:
    """What stands under each of these names, asked for at once; None for nothing.

    A damaged copy counts as none at the destination, which wants another, and at the source as
    there: copying it will report it. Raises `Stopped`.
    """

    async def stat(name: str) -> BlobInfo | None:
        try:
            return await store.stat(name)
        except NotFound:
            return None
        except Corrupt:
            return None if side == "destination" else BlobInfo(name, 0, 0, 0, b"")

    async def asked(name: str) -> BlobInfo | Stopped | None:
        try:
            return await ask(lambda: stat(name), side=side, pause=pause)
        except Stopped as stopped:  # returned, so that the others are not left running
            return stopped

    found: list[BlobInfo | None] = []
    for answer in await asyncio.gather(*map(asked, names)):
        if isinstance(answer, Stopped):
            raise answer
        found.append(answer)
    return found


def _is_whole(chunk: str, info: BlobInfo, store: BlobStore) -> bool:
    """Whether what stands is the chunk its name promises, as far as the store can tell."""
    half = chunk[len(CHUNK_PREFIX) :][: 2 * CHECKSUM_SIZE]
    return not store.capabilities.stamps or info.checksum.hex() == half
