"""Replicate: make one store hold what another holds.

First the digests, one request each; then only the partitions that differ are listed, and what
differs is copied in a few batches at once while the next differences are being found.

Manifests go last, in a second pass, and only when the chunks they name are where they should be.
The chunks were copied before. But a manifest may have been written meanwhile, with chunks whose
place in the order had been passed, or a chunk could not be copied. So before a manifest goes, the
destination is asked for its chunks, and what it lacks is copied now. The manifest stays behind if
a chunk can't be copied. A chunk that the source lacks as well does not hold it up: it is in
another group or lost, and either way the destination ends up with all the source has.

Read first: `dolmen.replication.compare`, `dolmen.replication.copy`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Sequence

from dolmen.closing import closing
from dolmen.errors import Corrupt, DolmenError, Outdated
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.record import Kind
from dolmen.replication.compare import Difference, compare
from dolmen.replication.copy import Copier
from dolmen.replication.manifests import chunks_in, missing
from dolmen.replication.purge import check_pair
from dolmen.replication.report import Progress, Report
from dolmen.store import ALL_PARTITIONS, NO_CHECKSUM, BlobInfo, BlobStore
from dolmen.stores.base import in_batches
from dolmen.stores.retrying import Pause, Retrying, ServerFailed

BATCH = 2_048
"""Names in a batch; the destination commits about that many at once."""
LANES = 3
"""Batches under way: one being read, one being written, one on its way."""
_NOTICE = 4_096
"""Entries compared between two calls of the progress callback."""


async def replicate(
    source: BlobStore,
    destination: BlobStore,
    *,
    partitions: Container[int] = ALL_PARTITIONS,
    progress: Progress | None = None,
    pace: Pace | None = None,
    pause: Pause = asyncio.sleep,
) -> Report:
    """Copy to `destination` what it lacks of `source`, or has at a lower rank.

    Deletes go along; nothing is ever removed, and what is newer at the destination stays. Only
    names of `partitions` take part. May be cancelled at any moment and run again.

    Blobs that can't be copied are counted in the report and skipped; a server that fails ends
    the run, and the report says which and why. Nothing is copied from a store that missed a
    purge of the destination's (`dolmen.replication.purge`). `pace` bounds the bytes copied a
    second. Must run in a task.
    """
    report = Report()
    copier = Copier(
        Retrying(source, "source", pause=pause),
        Retrying(destination, "destination", pause=pause),
        report,
        pace or Pace(),
    )
    run = _Run(copier, partitions, progress or (lambda _: None))
    try:
        await run.both_passes()
    except ServerFailed as failed:
        report.stopped, report.failing = failed.error, failed.server
    except (Outdated, Corrupt) as error:
        report.stopped, report.failing = error, "source"
    run.progress(report)
    return report


class _Run:
    """One run between two stores."""

    def __init__(self, copier: Copier, partitions: Container[int], progress: Progress) -> None:
        self.progress = progress
        self._copier, self._report, self._partitions = copier, copier.report, partitions
        self._source, self._destination = copier.source, copier.destination
        self._with_manifests: set[int] = set()

    async def both_passes(self) -> None:
        partitions = await self._differing()
        await self._bring(self._differences(partitions, manifests=False))
        await self._bring(self._differences(sorted(self._with_manifests), manifests=True))

    async def _differing(self) -> Sequence[int]:
        """The partitions to be listed: by the digests, or all where either store keeps none."""
        for store in (self._source, self._destination):
            if not (store.capabilities.digests and store.capabilities.stamps):
                return [at for at in ALL_PARTITIONS if at in self._partitions]
        ours, theirs = await self._source.digests(), await self._destination.digests()
        if ours == theirs and self._partitions is ALL_PARTITIONS:
            self._report.total = self._report.compared = ours.count
            return []
        counts = {at: count for at, count in ours.counts.items() if at in self._partitions}
        differing = [at for at in ours.differing(theirs) if at in counts]
        self._report.total = sum(counts.values())
        self._report.compared = self._report.total - sum(counts[at] for at in differing)
        return differing

    async def _differences(
        self, partitions: Sequence[int], *, manifests: bool
    ) -> AsyncIterator[Difference]:
        """Either those of manifests or all others."""
        if not partitions:
            return
        async with closing(compare(self._source, self._destination, partitions)) as compared:
            async for info, difference in compared:
                if not manifests:
                    self._report.compared += 1
                    if self._report.compared % _NOTICE == 0:
                        self.progress(self._report)
                if difference and (info.kind == Kind.MANIFEST) is manifests:
                    yield difference
                elif difference:
                    self._with_manifests.add(partition_of(info.name))

    async def _bring(self, differences: AsyncIterator[Difference]) -> None:
        """Copy these, a few batches at once, while the next are being found."""
        free = asyncio.Semaphore(LANES)

        async def bring(batch: Sequence[Difference]) -> None:
            try:
                # Each time: the source may have come back with an older disk.
                await check_pair(self._source, self._destination)
                await self._copier.copy([each for each in batch if await self._may_go(each)])
                self.progress(self._report)
            finally:
                free.release()

        try:
            async with (
                asyncio.TaskGroup() as lanes,
                closing(differences),
                closing(in_batches(differences, BATCH, size_of)) as batches,
            ):
                async for batch in batches:
                    await free.acquire()
                    lanes.create_task(bring(batch))
        except ExceptionGroup as group:  # Python before 3.11.4 raises groups from an except*
            _, unexpected = group.split((ServerFailed, Outdated, Corrupt))
            raise unexpected or group.exceptions[0] from group

    async def _may_go(self, difference: Difference) -> bool:
        """Whether the chunks of a manifest are at the destination, after copying those missing."""
        name = difference.info.name
        if difference.info.kind != Kind.MANIFEST or difference.touch:
            return True  # to be touched means that the destination has this very manifest
        try:
            chunks = await chunks_in(await self._source.get(name))
        except ServerFailed:
            raise
        except DolmenError:
            return True  # copying it meets the same trouble and reports it
        wanted = [each for each in chunks if partition_of(each) in self._partitions]
        try:
            lacking = await missing(self._destination, wanted)
        except ServerFailed:
            raise
        except DolmenError as error:  # a full server can't even make them young
            self._report.refuse(name, error)
            return False
        refused = await self._copier.copy([Difference(_unknown(chunk)) for chunk in lacking])
        if refused:
            why = Corrupt(f"its chunk {refused[0]} could not be copied")
            self._report.refuse(name, why, reason="ChunkMissing")
        return not refused


def _unknown(chunk: str) -> BlobInfo:
    """A chunk of which nothing but the name is known."""
    return BlobInfo(chunk, 0, Kind.BLOB, 0, NO_CHECKSUM)


def size_of(difference: Difference) -> int:
    """Bytes of data to be sent; below zero where it is not known."""
    return 0 if difference.touch else difference.info.size
