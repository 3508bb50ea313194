"""Garbage collection: chunks that no manifest names go, while uploads go on.

Deleted objects leave their chunks behind, and so do uploads that were broken off. First all
manifests of all servers are read, then chunks that none of them names are removed where they
are older than the grace time.

Why nothing in use goes, whatever happens meanwhile:

- An upload writes or touches each of its chunks, and again before its manifest where that was
  a while ago. So the chunks of a manifest that was not there to be read are young.
- Replication touches the chunks of a manifest that it copies, where they are old.
- Every live manifest on any server counts, also one that a newer write on another server
  overrules: what it names is let go of when it is gone.
- Repair may move a manifest from a server that should not hold it to those that should. It
  removes the one after it verified the others. So misplaced manifests are read first and
  rightful ones after that, of all servers: one of the two readings sees what is moved.
- The age is measured by the clock that wrote it down, the server's own, in the very moment of
  the removal, together with the stamp: a chunk touched since it was listed stays.
- A server whose clock jumped says so in its condition, and nothing is removed there.
- A server that can't be read in full, a manifest of which no copy can be read, or a server that
  belongs to another configuration than this one, ends it before anything is removed.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Group
from dolmen.cluster.placement import Placement
from dolmen.errors import Corrupt, DolmenError, NotFound, Outdated, Unavailable
from dolmen.names import CHUNK_PREFIX, is_chunk_name, partition_of
from dolmen.record import Kind
from dolmen.replication.compare import listed
from dolmen.replication.group import strays
from dolmen.replication.manifests import GRACE, chunks_of
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Listing, Remove
from dolmen.stores.base import in_batches
from dolmen.stores.epoch import NOTHING, Seen, seen_in
from dolmen.stores.retrying import Pause, Retrying, ServerFailed

_BATCH = 1_000
BUCKETS = 256
_WIDTH = len(ALL_PARTITIONS) // BUCKETS
_DIGEST = 32


class Marks(ExitStack):
    """The chunks named by manifests: a temporary file for every 256 partitions, a *bucket*.

    A context, at whose end the files go.
    """

    def __init__(self) -> None:
        super().__init__()
        self._files = [
            self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - as long as the context
            for _ in range(BUCKETS)
        ]
        self.manifests = 0
        """How many manifests were read."""

    def add(self, chunks: Sequence[str]) -> None:
        """Take in what a manifest names."""
        self.manifests += 1
        for name in chunks:
            digest = bytes.fromhex(name.removeprefix(CHUNK_PREFIX))
            self._files[partition_of(name) // _WIDTH].write(digest)

    def named(self, bucket: int) -> set[str]:
        """The names of the chunks in a bucket."""
        file = self._files[bucket]
        file.seek(0)
        data = file.read()
        return {CHUNK_PREFIX + data[at : at + _DIGEST].hex() for at in range(0, len(data), _DIGEST)}


async def chunks_on(store: BlobStore, bucket: int) -> AsyncIterator[BlobInfo]:
    """The chunks of a bucket that a store has."""
    partitions = range(bucket * _WIDTH, (bucket + 1) * _WIDTH)
    async with closing(store.list(Listing(partitions, None, CHUNK_PREFIX))) as infos:
        async for info in infos:
            if is_chunk_name(info.name) and info.kind == Kind.BLOB:
                yield info


class Servers:
    """All servers of a cluster, asked until they answer (`stores`), and who should hold what."""

    def __init__(self, groups: Sequence[Group], pause: Pause) -> None:
        self.members = {member.name: member for group in groups for member in group.members}
        self.stores = {n: Retrying(m.store, n, pause=pause) for n, m in self.members.items()}
        self.placement = Placement(groups)

    async def strangers(self, seen: Seen) -> str | None:
        """Why the manifests that name chunks of these servers may be on others."""
        for store in self.stores.values():
            if store.capabilities.stamps:
                known = seen_in(await store.notes())
                if known not in (NOTHING, seen):
                    return (
                        f"{store.server} belongs to a cluster (epoch {known.epoch}) with another "
                        f"configuration than this one (epoch {seen.epoch}), whose manifests may "
                        "name its chunks: use --config and the cluster's configuration"
                    )
        return None

    async def mark(self, marks: Marks) -> Sequence[tuple[str, DolmenError]]:
        """Read every manifest of every server; returns those that can't be read, and why.

        Nobody knows what they name. Raises `ServerFailed`: what can't be listed in full can't
        be counted.
        """
        unread: dict[str, DolmenError] = {}
        async with closing(self.manifests()) as found:
            async for name, holders in found:
                try:
                    marks.add(await chunks_of(name, holders))
                except DolmenError as error:
                    unread[name] = error
        for server, store in self.stores.items():
            async with closing(store.list(Listing(quarantined=True))) as infos:
                async for info in infos:
                    damaged = Corrupt(f"the copy on {server} is quarantined")
                    unread.setdefault(info.name, damaged)
        return [
            (name, error)
            for name, error in unread.items()
            if not (is_chunk_name(name) or await self._made_up_for(name, marks))
        ]

    async def manifests(self) -> AsyncIterator[tuple[str, Sequence[BlobStore]]]:
        """Every live manifest with the stores that hold it: misplaced ones first.

        Differing manifests under one name come one after the other.
        """
        misplaced: dict[str, Sequence[int]] = {}
        rightful: dict[str, Sequence[int]] = {}
        for name, store in self.stores.items():
            own = strays(self.placement, self.members[name], await store.digests())
            misplaced[name] = own
            rightful[name] = sorted({*ALL_PARTITIONS}.difference(own)) if own else ALL_PARTITIONS
        for partitions in (misplaced, rightful):
            async with closing(listed(self.stores, partitions)) as names:
                async for held in names:
                    versions: dict[bytes, list[BlobStore]] = {}
                    for server, info in held.items():
                        if info.kind == Kind.MANIFEST:
                            versions.setdefault(info.checksum, []).append(self.stores[server])
                    for holders in versions.values():
                        yield next(iter(held.values())).name, holders

    async def _made_up_for(self, name: str, marks: Marks) -> bool:
        """Whether the object of a damaged copy can be had from another, whose chunks count then.

        A tombstone elsewhere does not do: the damaged copy may be the newer one. Repair puts
        the tombstone in its place where it is not.
        """
        sound = False
        for store in self.stores.values():
            try:
                info = await store.stat(name)
                if info.kind == Kind.MANIFEST:
                    marks.add(await chunks_of(name, [store]))
                sound = True
            except ServerFailed:
                raise
            except (NotFound, Corrupt, Unavailable):
                continue
        return sound


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
    unread: Sequence[tuple[str, DolmenError]] = ()
    """Manifests of which no copy can be read, and why. Nothing is removed then."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Servers on which nothing was removed, and why."""
    buckets: int = 0
    """How many 256ths of the names were swept."""
    by_server: dict[str, int] = field(default_factory=dict)
    """Copies removed, by server."""


async def collect(
    groups: Sequence[Group],
    *,
    seen: Seen = NOTHING,
    grace: float = GRACE,
    dry_run: bool = False,
    progress: Callable[[Collected], None] | None = None,
    now: Callable[[], float] = time.time,
    pause: Pause = asyncio.sleep,
) -> Collected:
    """Remove what no manifest names. May be interrupted anywhere and run again.

    `seen` is the configuration these groups are; `now` gives seconds since 1970 for a dry run.
    Raises `Unavailable` when a server fails, and `Outdated` when one belongs to another
    configuration.
    """
    servers, report = Servers(groups, pause), Collected()

    async def remove(store: Retrying, batch: Sequence[BlobInfo]) -> None:
        if not batch:
            return
        if dry_run:
            went: Sequence[bool] = [now() - info.arrived >= grace for info in batch]
        else:
            removes = [Remove(info.name, info.stamp) for info in batch]
            went = await store.remove_many(removes, min_age=grace, epoch=seen.epoch)
        gone = sum(went)
        report.removed += gone
        report.young += len(batch) - gone
        report.bytes += sum(info.size for info, did in zip(batch, went, strict=True) if did)
        report.by_server[store.server] = report.by_server.get(store.server, 0) + gone

    with Marks() as marks:
        swept = [each for each in servers.stores.values() if each.capabilities.stamps]
        if why := await servers.strangers(seen):
            raise Outdated(why)
        report.unread = await servers.mark(marks)
        report.manifests = marks.manifests
        if report.unread:
            return report
        for store in [*swept]:
            if why := await _clock_in_doubt(store):
                report.passed_over[store.server] = why
                swept.remove(store)
        for bucket in range(BUCKETS):
            named = marks.named(bucket)
            for store in swept:
                async with (
                    closing(chunks_on(store, bucket)) as chunks,
                    closing(in_batches(chunks, _BATCH)) as batches,
                ):
                    async for batch in batches:
                        report.chunks += len(batch)
                        await remove(store, [info for info in batch if info.name not in named])
            report.buckets += 1
            if progress:
                progress(report)
    return report


async def _clock_in_doubt(store: Retrying) -> str | None:
    """What a server says of a clock that jumped: ages are not to be relied on until it is over."""
    condition = await store.condition()
    said = [*condition.reasons, *condition.remarks]
    return next((each for each in said if "clock" in each), None)
