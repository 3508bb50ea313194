"""Garbage collection: chunks that no manifest names go, while uploads go on.

Deleted objects leave their chunks behind, and so do uploads that were broken off. First all
manifests of all servers are read (`dolmen.replication.mark`), then chunks that none of them
names are removed where they are older than the grace time.

Why nothing in use goes, whatever happens meanwhile:

- An upload writes or touches each of its chunks, and again before its manifest where that was
  a while ago. So the chunks of a manifest that was not there to be read are young.
- Replication touches the chunks of a manifest that it copies, where they are old.
- The age is measured by the clock that wrote it down, the server's own, in the very moment of
  the removal, together with the stamp: a chunk touched since it was listed stays.
- A server whose clock jumped says so in its condition, and nothing is removed there.
- A server that can't be read in full, a manifest of which no copy can be read, or a server that
  belongs to another configuration than this one, ends it before anything is removed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Group
from dolmen.errors import Outdated
from dolmen.names import CHUNK_PREFIX, is_chunk_name
from dolmen.record import Kind
from dolmen.replication.manifests import GRACE
from dolmen.replication.mark import BUCKETS, Marks, Servers, Unread, partitions_of_bucket
from dolmen.store import BlobInfo, Listing, Remove
from dolmen.stores.epoch import NOTHING, Seen, seen_in
from dolmen.stores.retrying import Pause, Retrying

_BATCH = 1_000


@dataclass(slots=True)
class Collected:
    """What a collection found and removed. Sizes in bytes, copies counted on every server."""

    manifests: int = 0
    chunks: int = 0
    """Copies of chunks there were."""
    young: int = 0
    """Copies that no manifest names, within the grace time."""
    removed: int = 0
    """Copies removed, or with a dry run those that would be."""
    bytes: int = 0
    """Data in those."""
    unread: Sequence[Unread] = ()
    """Manifests of which no copy can be read. Nothing is removed then."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Servers on which nothing was removed, and why."""
    buckets: int = 0
    """How many 256ths of the names were swept."""
    by_server: dict[str, int] = field(default_factory=dict)
    """Copies removed, by server."""


Progress = Callable[[Collected], None]


async def collect(
    groups: Sequence[Group],
    *,
    seen: Seen = NOTHING,
    grace: float = GRACE,
    dry_run: bool = False,
    progress: Progress | None = None,
    now: Callable[[], float] = time.time,
    pause: Pause = asyncio.sleep,
) -> Collected:
    """Remove what no manifest names. May be interrupted anywhere and run again.

    `seen` is the configuration these groups are; `now` gives seconds since 1970 for a dry run.
    Raises `Unavailable` when a server fails, and `Outdated` when one belongs to another
    configuration.
    """
    servers, report = Servers(groups, pause), Collected()
    with Marks() as marks:
        await _check_membership(servers, seen)
        report.unread = await servers.mark(marks)
        report.manifests = marks.manifests
        if report.unread:
            return report
        sweep = _Sweep(report, seen.epoch, grace, now if dry_run else None)
        swept = {name: each for name, each in servers.stores.items() if each.capabilities.stamps}
        for name, store in [*swept.items()]:
            if why := await _clock_in_doubt(store):
                report.passed_over[name] = why
                del swept[name]
        for bucket in range(BUCKETS):
            named = marks.named(bucket)
            for store in swept.values():
                await sweep.bucket(store, bucket, named)
            report.buckets += 1
            if progress:
                progress(report)
    return report


async def _check_membership(servers: Servers, seen: Seen) -> None:
    """Raise `Outdated` for a server of another configuration: others may name its chunks."""
    for name, store in servers.stores.items():
        if store.capabilities.stamps:
            known = seen_in(await store.notes())
            if known not in (NOTHING, seen):
                raise Outdated(
                    f"{name} belongs to a cluster (epoch {known.epoch}) with another "
                    f"configuration than this one (epoch {seen.epoch}), whose manifests may name "
                    "its chunks: run dolmen gc with --config and the cluster's configuration"
                )


async def _clock_in_doubt(store: Retrying) -> str | None:
    """What a server says of a clock that jumped: ages are not to be relied on until it is over."""
    condition = await store.condition()
    said = [*condition.reasons, *condition.remarks]
    return next((each for each in said if "clock" in each), None)


@dataclass(slots=True)
class _Sweep:
    report: Collected
    epoch: int
    grace: float
    now: Callable[[], float] | None
    """For a dry run."""

    async def bucket(self, store: Retrying, bucket: int, named: set[str]) -> None:
        """Sweep one server's part of a bucket."""
        batch: list[BlobInfo] = []
        listing = Listing(partitions_of_bucket(bucket), None, CHUNK_PREFIX)
        async with closing(store.list(listing)) as infos:
            async for info in infos:
                if not is_chunk_name(info.name) or info.kind != Kind.BLOB:
                    continue
                self.report.chunks += 1
                if info.name not in named:
                    batch.append(info)
                if len(batch) == _BATCH:
                    await self._remove(store, batch)
                    batch = []
        if batch:
            await self._remove(store, batch)

    async def _remove(self, store: Retrying, batch: Sequence[BlobInfo]) -> None:
        if self.now is not None:
            went: Sequence[bool] = [self.now() - info.arrived >= self.grace for info in batch]
        else:
            removes = [Remove(info.name, info.stamp) for info in batch]
            went = await store.remove_many(removes, min_age=self.grace, epoch=self.epoch)
        report, gone = self.report, sum(went)
        report.removed += gone
        report.young += len(batch) - gone
        report.bytes += sum(info.size for info, did in zip(batch, went, strict=True) if did)
        report.by_server[store.server] = report.by_server.get(store.server, 0) + gone
