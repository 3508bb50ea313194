"""Checking a cluster: what is there that should not be, and what is not that should.

Reads every server's listing once, side by side, and every manifest; in constant memory but for
a 256th of the chunks' names. Nothing is changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Group
from dolmen.errors import NotFound
from dolmen.names import CHUNK_PREFIX, is_chunk_name, partition_of
from dolmen.record import Kind
from dolmen.replication.compare import listed
from dolmen.replication.mark import BUCKETS, Marks, Servers, chunks_of, partitions_of_bucket
from dolmen.replication.report import Refused
from dolmen.store import BlobInfo, Failed, Listing
from dolmen.stores.retrying import Pause, Retrying

EXAMPLES = 10
_BATCH = 500

LACKING = "lacking"
"""A server that should hold it has no copy."""
OUTDATED = "outdated"
"""A copy older than a write on another server."""
MISPLACED = "misplaced"
"""A copy on a server that should not hold it."""
QUARANTINED = "quarantined"
"""A copy known to be damaged."""
DAMAGED = "damaged"
"""A copy whose data is not what it should be; found by reading it."""
UNREADABLE = "unreadable"
"""A manifest of which no copy can be read."""
BROKEN = "broken"
"""An object one of whose chunks is on no server."""


@dataclass(slots=True)
class Findings:
    """What a check found."""

    names: int = 0
    """Names looked at, deleted ones too."""
    copies: int = 0
    manifests: int = 0
    read: int = 0
    """Copies whose data was read."""
    wrong: dict[str, Refused] = field(default_factory=dict)
    """By kind (the constants of this module): how many, and the first few with where and why."""
    unnamed: int = 0
    """Copies of chunks no manifest names. `dolmen gc` removes them in time."""
    unnamed_bytes: int = 0

    @property
    def well(self) -> bool:
        """Whether all is as it should be."""
        return not self.wrong

    def add(self, kind: str, name: str, why: str) -> None:
        """Count one thing that is wrong."""
        found = self.wrong.setdefault(kind, Refused())
        found.count += 1
        if len(found.examples) < EXAMPLES:
            found.examples.append((name, why))


Progress = Callable[[Findings], None]


async def check(
    groups: Sequence[Group],
    *,
    data: bool = False,
    progress: Progress | None = None,
    pause: Pause = asyncio.sleep,
) -> Findings:
    """Look at everything; with `data` also read every copy where it lies.

    Raises `Unavailable` when a server fails.
    """
    work = _Check(Servers(groups, pause), progress or (lambda _: None))
    with Marks() as marks:
        await work.copies()
        await work.quarantined()
        await work.chunks(marks)
        if data:
            for store in work.servers.stores.values():
                await work.data(store)
    return work.findings


class _Check:
    def __init__(self, servers: Servers, progress: Progress) -> None:
        self.findings, self.servers = Findings(), servers
        self._progress = progress

    async def copies(self) -> None:
        """Which server holds what, against which should."""
        async with closing(listed(self.servers.stores)) as names:
            async for held in names:
                self.findings.names += 1
                self.findings.copies += len(held)
                self._copies_of(held)
                if self.findings.names % 1_000 == 0:
                    self._progress(self.findings)

    def _copies_of(self, held: Mapping[str, BlobInfo]) -> None:
        best = max(held.values(), key=lambda info: info.rank)
        place = self.servers.placement.of(partition_of(best.name))
        for member in place.rightful:
            if member.name not in held and place.group.counts(member):
                self.findings.add(LACKING, best.name, f"{member.name} should hold it")
        rightful = {member.name for member in place.rightful}
        for name, info in held.items():
            if name not in rightful:
                self.findings.add(MISPLACED, best.name, f"{name} should not hold it")
            elif info.rank != best.rank and self.servers.stores[name].capabilities.stamps:
                self.findings.add(OUTDATED, best.name, f"{name} has an older write of it")

    async def quarantined(self) -> None:
        """Copies the servers know to be damaged."""
        for name, store in self.servers.stores.items():
            async with closing(store.list(Listing(quarantined=True))) as infos:
                async for info in infos:
                    self.findings.add(QUARANTINED, info.name, f"on {name}")

    async def chunks(self, marks: Marks) -> None:
        """Whether every chunk that is named is there, and which ones nobody names."""
        for unread in await self.servers.mark(marks):
            self.findings.add(UNREADABLE, unread.name, str(unread.error))
        self.findings.manifests = marks.manifests
        absent: set[str] = set()
        for bucket in range(BUCKETS):
            absent |= await self._absent(bucket, marks.named(bucket))
        if absent:
            await self._broken(absent)

    async def _absent(self, bucket: int, named: set[str]) -> set[str]:
        """The named chunks of a bucket that no server has."""
        present: set[str] = set()
        partitions = partitions_of_bucket(bucket)
        chunks = listed(self.servers.stores, partitions, prefix=CHUNK_PREFIX)
        async with closing(chunks) as names:
            async for held in names:
                infos = [info for info in held.values() if info.kind == Kind.BLOB]
                if not infos or not is_chunk_name(infos[0].name):
                    continue
                present.add(infos[0].name)
                if infos[0].name not in named:
                    self.findings.unnamed += len(infos)
                    self.findings.unnamed_bytes += sum(max(info.size, 0) for info in infos)
        self._progress(self.findings)
        return named - present

    async def _broken(self, absent: set[str]) -> None:
        """Which objects name chunks that are nowhere."""
        seen: set[str] = set()
        async with closing(self.servers.manifests()) as every:
            async for info, holders in every:
                if info.name in seen:
                    continue
                lost = absent.intersection(await chunks_of(info, holders))
                if lost:
                    seen.add(info.name)
                    why = f"{len(lost)} of its chunks are on no server, such as {min(lost)}"
                    self.findings.add(BROKEN, info.name, why)

    async def data(self, store: Retrying) -> None:
        """Whether every copy of a server is what it should be, to the last byte."""
        batch: list[str] = []
        async with closing(store.list(Listing(tombstones=True))) as infos:
            async for info in infos:
                batch.append(info.name)
                if len(batch) == _BATCH:
                    await self._verify(store, batch)
                    batch = []
        await self._verify(store, batch)

    async def _verify(self, store: Retrying, names: Sequence[str]) -> None:
        async with closing(store.verify_many(names)) as answers:
            async for answer in answers:
                self.findings.read += 1
                if isinstance(answer, Failed) and not isinstance(answer.error, NotFound):
                    self.findings.add(DAMAGED, answer.name, f"on {store.server}: {answer.error}")
        self._progress(self.findings)
