"""Make one store hold what another holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

from dolmen.closing import closing
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.record import Kind
from dolmen.replication.compare import Difference, compare, scope
from dolmen.replication.copy import Copier
from dolmen.replication.horizon import DOUBTFUL, horizons_of
from dolmen.replication.manifests import Chunks
from dolmen.replication.patience import Pause, Stopped
from dolmen.replication.report import Progress, Report
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore
from dolmen.stores.horizon import NO_HORIZONS

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
    rejoin: bool = False,
    progress: Progress | None = None,
    pace: Pace | None = None,
    pause: Pause = asyncio.sleep,
) -> Report:
    """Copy to `destination` what it lacks of `source`, or has at a lower rank.

    Deletes go along; nothing is ever removed, and what is newer at the
    destination stays. Only names of `partitions` take part. May be cancelled
    at any moment and run again.

    Manifests go last, in a second pass over the partitions that had any, so an
    object that becomes visible at the destination has its chunks there; see
    `dolmen.replication.manifests`.

    What may have been deleted while the source was away is refused, unless `rejoin` is
    given (`dolmen.replication.horizon`). `pace` bounds the bytes copied a second.

    Blobs that can't be copied are counted in the report and skipped; a server
    that fails ends the run, and the report says which and why. Must run in a task.
    """
    run = _Run(source, destination, progress or (lambda _: None), pace or Pace(), pause)
    try:
        await run.whole(partitions, rejoin=rejoin)
    except Stopped as stopped:
        run.report.stopped, run.report.failing = stopped.error, stopped.side
    run.progress(run.report)
    return run.report


class _Run:
    """One run between two stores."""

    def __init__(
        self,
        source: BlobStore,
        destination: BlobStore,
        progress: Progress,
        pace: Pace,
        pause: Pause,
    ) -> None:
        self.report = Report()
        self.progress = progress
        self._stores = (source, destination)
        self._pause = pause
        self._copier = Copier(source, destination, self.report, pace, pause)
        self._horizons = NO_HORIZONS
        self._with_manifests: set[int] = set()

    async def whole(self, partitions: Collection[int], *, rejoin: bool) -> None:
        """Both passes."""
        chunks = Chunks(*self._stores, partitions, self._copier, self.report, self._pause)
        found = await scope(*self._stores, partitions, self._pause)
        self.report.total, self.report.compared = found.total, found.in_step
        if found.partitions:
            self._horizons = await horizons_of(*self._stores, self._pause, rejoin=rejoin)
        await self._bring(self._all_but_manifests(found.partitions))
        await self._bring(self._manifests(sorted(self._with_manifests)), chunks)

    async def _all_but_manifests(self, partitions: Sequence[int]) -> AsyncIterator[Difference]:
        if not partitions:
            return
        async with closing(self._compared(partitions)) as compared:
            async for info, difference in compared:
                self.report.compared += 1
                if self.report.compared % _NOTICE == 0:
                    self.progress(self.report)
                if difference and difference.doubtful:
                    self.report.refuse(info.name, DOUBTFUL, reason="MayBeDeleted")
                elif difference and info.kind == Kind.MANIFEST:
                    self._with_manifests.add(partition_of(info.name))
                elif difference:
                    yield difference

    async def _manifests(self, partitions: Sequence[int]) -> AsyncIterator[Difference]:
        if not partitions:
            return
        async with closing(self._compared(partitions)) as compared:
            async for info, difference in compared:
                if difference and info.kind == Kind.MANIFEST and not difference.doubtful:
                    yield difference

    def _compared(
        self, partitions: Sequence[int]
    ) -> AsyncIterator[tuple[BlobInfo, Difference | None]]:
        return compare(*self._stores, partitions, self._pause, self._horizons)

    async def _bring(
        self, differences: AsyncIterator[Difference], chunks: Chunks | None = None
    ) -> None:
        """Copy these, a few batches at once, while the next are being found."""
        free = asyncio.Semaphore(LANES)
        stops: list[Stopped] = []

        async def bring(batch: list[Difference]) -> None:
            try:
                await self._copier.bring(await chunks.see_to(batch) if chunks else batch)
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
        except* Stopped as group:
            stops += [error for error in group.exceptions if isinstance(error, Stopped)]
        if stops:
            raise stops[0]


async def batches(differences: AsyncIterator[Difference]) -> AsyncIterator[list[Difference]]:
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
