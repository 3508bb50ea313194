"""Replicate: make one store hold what another holds.

Compare, then copy in a few batches at once while the next differences are being found; manifests
in a second pass, after the chunks they name. Read first: `dolmen.replication.compare`,
`dolmen.replication.copy`, `dolmen.replication.manifests`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

from dolmen.closing import closing
from dolmen.errors import Corrupt, Outdated
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.record import Kind
from dolmen.replication.compare import Difference, compare, scope
from dolmen.replication.copy import Copier
from dolmen.replication.manifests import Chunks
from dolmen.replication.purge import check_pair
from dolmen.replication.report import Progress, Report
from dolmen.store import ALL_PARTITIONS, BlobStore
from dolmen.stores.retrying import Pause, Retrying, ServerFailed

BATCH = 2_048
"""Names in a batch; the destination commits about that many at once."""
BATCH_BYTES = 64 << 20
"""Data after which a batch ends early, so that an attempt is never long."""
LANES = 3
"""Batches under way: one being read, one being written, one on its way."""
_NOTICE = 4_096
"""Entries compared between two calls of the progress callback."""


async def replicate(
    source: BlobStore,
    destination: BlobStore,
    *,
    partitions: Collection[int] = ALL_PARTITIONS,
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
    run = _Run(
        Retrying(source, "source", pause=pause),
        Retrying(destination, "destination", pause=pause),
        progress or (lambda _: None),
        pace or Pace(),
    )
    report = run.report
    try:
        await run.whole(partitions)
    except ServerFailed as failed:
        report.stopped, report.failing = failed.error, failed.server
    except (Outdated, Corrupt) as error:
        report.stopped, report.failing = error, "source"
    run.progress(report)
    return report


class _Run:
    """One run between two stores."""

    def __init__(
        self, source: Retrying, destination: Retrying, progress: Progress, pace: Pace
    ) -> None:
        self.report, self.progress = Report(), progress
        self._source, self._destination = source, destination
        self._copier = Copier(source, destination, self.report, pace)
        self._with_manifests: set[int] = set()

    async def whole(self, partitions: Collection[int]) -> None:
        """Both passes."""
        found = await scope(self._source, self._destination, partitions)
        self.report.total, self.report.compared = found.total, found.in_sync
        await self._bring(self._all_but_manifests(found.partitions))
        chunks = Chunks(self._copier, partitions)
        await self._bring(self._manifests(sorted(self._with_manifests)), chunks)

    async def _all_but_manifests(self, partitions: Sequence[int]) -> AsyncIterator[Difference]:
        if not partitions:
            return
        async with closing(compare(self._source, self._destination, partitions)) as compared:
            async for info, difference in compared:
                self.report.compared += 1
                if self.report.compared % _NOTICE == 0:
                    self.progress(self.report)
                if difference and info.kind == Kind.MANIFEST:
                    self._with_manifests.add(partition_of(info.name))
                elif difference:
                    yield difference

    async def _manifests(self, partitions: Sequence[int]) -> AsyncIterator[Difference]:
        if not partitions:
            return
        async with closing(compare(self._source, self._destination, partitions)) as compared:
            async for info, difference in compared:
                if difference and info.kind == Kind.MANIFEST:
                    yield difference

    async def _bring(
        self, differences: AsyncIterator[Difference], chunks: Chunks | None = None
    ) -> None:
        """Copy these, a few batches at once, while the next are being found."""
        free = asyncio.Semaphore(LANES)

        async def bring(batch: Sequence[Difference]) -> None:
            try:
                # Each time: the source may have come back with an older disk.
                await check_pair(self._source, self._destination)
                await self._copier.copy(await chunks.ready(batch) if chunks else batch)
                self.progress(self.report)
            finally:
                free.release()

        try:
            async with (
                asyncio.TaskGroup() as lanes,
                closing(differences),
                closing(batches(differences)) as ready,
            ):
                async for batch in ready:
                    await free.acquire()
                    lanes.create_task(bring(batch))
        except* (ServerFailed, Outdated, Corrupt) as group:
            raise group.exceptions[0] from group


async def batches(differences: AsyncIterator[Difference]) -> AsyncIterator[Sequence[Difference]]:
    """Gather differences into batches bounded in names and in bytes of data."""
    batch: list[Difference] = []
    size = 0
    async for difference in differences:
        batch.append(difference)
        size += 0 if difference.touch else max(difference.info.size, 0)  # -1: not known
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
