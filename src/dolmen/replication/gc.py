"""Garbage collection: chunks that no manifest names go, while uploads go on.

Deleted objects leave their chunks behind, and so do uploads that were broken off. First all
manifests of all servers are read (`dolmen.replication.census`), then the chunks that none of
them names are removed, where they are older than the grace time.

Why nothing in use goes, whatever happens meanwhile:

- An upload writes or touches each of its chunks before its manifest, and again when it takes
  longer than half the grace time. Touching renews a chunk's age. So the chunks of a manifest
  that was not there to be read are younger than the grace time.
- Replication touches the chunks of a manifest that it copies, where they are old.
- The age is that on the server's own clock, and is looked at again in the very moment of
  the removal, together with the stamp: a chunk that was touched since it was listed stays.
- A server that can't be read in full, or a manifest of which no copy can be read, ends it
  before anything is removed.
- Servers refuse removals by an older configuration than they have seen, so what a newer one
  moves around is not missed unnoticed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.placement import Placement
from dolmen.cluster.upload import GRACE
from dolmen.names import CHUNK_PREFIX, is_chunk_name
from dolmen.record import Kind
from dolmen.replication.census import BUCKETS, Census, Unread, partitions_of_bucket, take
from dolmen.replication.patience import Pause, ask, listing
from dolmen.replication.side_by_side import naming, told
from dolmen.store import Remove

_BATCH = 1_000


@dataclass(slots=True)
class Collected:
    """What a collection found and removed. Sizes in bytes, copies counted on every server."""

    manifests: int = 0
    chunks: int = 0
    """Copies of chunks that stood."""
    young: int = 0
    """Copies that no manifest names, too young to go."""
    removed: int = 0
    """Copies removed, or with a dry run those that would be."""
    bytes: int = 0
    """Data in those."""
    unread: Sequence[Unread] = ()
    """Manifests of which no copy can be read. Nothing is removed then."""
    buckets: int = 0
    """How many 256ths of the names were swept."""
    by_server: dict[str, int] = field(default_factory=dict)
    """Copies removed, by server."""


Progress = Callable[[Collected], None]


async def collect(
    groups: Sequence[Group],
    *,
    epoch: int | None = None,
    grace: float = GRACE,
    dry_run: bool = False,
    progress: Progress | None = None,
    now: Callable[[], float] = time.time,
    pause: Pause = asyncio.sleep,
) -> Collected:
    """Remove what no manifest names. May be broken off anywhere and begun again.

    Raises `Unavailable` when a server fails, and `Outdated` when one has seen a newer epoch.
    """
    members = {member.name: member for group in groups for member in group.members}
    report = Collected()
    with told(), Census() as census:
        report.unread = await take(census, members, Placement(groups), pause)
        report.manifests = census.manifests
        if report.unread:
            return report
        sweep = _Sweep(report, epoch, grace, now, pause, dry_run=dry_run)
        for bucket in range(BUCKETS):
            named = census.named(bucket)
            for name, member in members.items():
                with naming(name):
                    await sweep.bucket(bucket, named, member)
            report.buckets += 1
            if progress:
                progress(report)
    return report


class _Sweep:
    def __init__(
        self,
        report: Collected,
        epoch: int | None,
        grace: float,
        now: Callable[[], float],
        pause: Pause,
        *,
        dry_run: bool,
    ) -> None:
        self._report, self._epoch, self._grace = report, epoch, grace
        self._now, self._pause, self._dry_run = now, pause, dry_run

    async def bucket(self, bucket: int, named: set[str], member: Member) -> None:
        """Sweep one server's part of a bucket."""
        if not member.store.capabilities.stamps:
            return  # a plain sos server can't be told to remove anything
        batch: list[Remove] = []
        sizes: dict[str, int] = {}
        partitions = partitions_of_bucket(bucket)
        chunks = listing(
            member.store, partitions, prefix=CHUNK_PREFIX, side="source", pause=self._pause
        )
        async with closing(chunks) as infos:
            async for info in infos:
                if not is_chunk_name(info.name) or info.kind != Kind.BLOB:
                    continue
                self._report.chunks += 1
                if info.name in named:
                    continue
                if self._now() - info.arrived < self._grace:
                    self._report.young += 1
                    continue
                batch.append(Remove(info.name, info.stamp))
                sizes[info.name] = info.size
        for at in range(0, len(batch), _BATCH):
            await self._remove(member, batch[at : at + _BATCH], sizes)

    async def _remove(self, member: Member, batch: Sequence[Remove], sizes: dict[str, int]) -> None:
        removed: Sequence[bool] = [True] * len(batch)
        if not self._dry_run:
            removed = await ask(
                lambda: member.store.remove_many(batch, min_age=self._grace, epoch=self._epoch),
                side="destination",
                pause=self._pause,
            )
        gone = [name for (name, _), went in zip(batch, removed, strict=True) if went]
        report = self._report
        report.removed += len(gone)
        report.young += len(batch) - len(gone)
        report.bytes += sum(sizes[name] for name in gone)
        report.by_server[member.name] = report.by_server.get(member.name, 0) + len(gone)
