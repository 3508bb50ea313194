"""Checking a cluster: what is there that should not be, and what is not that should.

Reads every server's listing once, side by side, and every manifest; in constant memory but for
a 256th of the chunks' names. Nothing is changed. What is wrong is one of these:

- lacking: a server that should hold it has no copy
- outdated: a copy older than a write on another server
- misplaced: a copy on a server that should not hold it
- quarantined: a copy known to be damaged
- damaged: a copy whose data is not what it should be, found by reading it
- unreadable: a manifest of which no copy can be read
- broken: an object one of whose chunks is on no server
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.groups import Group
from dolmen.errors import Corrupt, NotFound
from dolmen.names import partition_of
from dolmen.replication.compare import listed
from dolmen.replication.gc import BUCKETS, Marks, Servers, chunks_on
from dolmen.replication.manifests import chunks_of
from dolmen.replication.report import Refused
from dolmen.store import BlobInfo, Failed, Listing
from dolmen.stores.base import in_batches
from dolmen.stores.epoch import NOTHING, Seen
from dolmen.stores.retrying import Pause, Retrying

_BATCH = 500


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
    """By kind: how many, and the first few with where and why."""
    unnamed: int = 0
    """Copies of chunks no manifest names. `dolmen gc` removes them in time."""
    unnamed_bytes: int = 0
    partial: str | None = None
    """Why nothing can be said of manifests and chunks: some are on other servers."""

    @property
    def well(self) -> bool:
        """Whether all is as it should be."""
        return not self.wrong

    def add(self, kind: str, name: str, why: str) -> None:
        """Count one thing that is wrong."""
        self.wrong.setdefault(kind, Refused()).add(name, why)


Progress = Callable[[Findings], None]


async def check(
    groups: Sequence[Group],
    *,
    seen: Seen = NOTHING,
    data: bool = False,
    progress: Progress | None = None,
    pause: Pause = asyncio.sleep,
) -> Findings:
    """Look at everything; with `data` also read every copy where it lies. `seen` is the
    configuration these groups are.

    Raises `Unavailable` when a server fails.
    """
    work = _Check(Servers(groups, pause), progress or (lambda _: None))
    await work.copies()
    for store in work.servers.stores.values():
        await work.quarantined(store)
    work.findings.partial = await work.servers.strangers(seen)
    if not work.findings.partial:
        with Marks() as marks:
            await work.chunks(marks)
    for store in work.servers.stores.values() if data else ():
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
        rightful = {member.name: member for member in place.rightful}
        for name, member in rightful.items():
            if name not in held and place.group.counts(member):
                self.findings.add("lacking", best.name, f"{name} should hold it")
        for name, info in held.items():
            if name not in rightful:
                self.findings.add("misplaced", best.name, f"{name} should not hold it")
            elif info.rank != best.rank and self.servers.stores[name].capabilities.stamps:
                self.findings.add("outdated", best.name, f"{name} has an older write of it")

    async def quarantined(self, store: Retrying) -> None:
        """Copies a server knows to be damaged."""
        async with closing(store.list(Listing(quarantined=True))) as infos:
            async for info in infos:
                self.findings.add("quarantined", info.name, f"on {store.server}")

    async def chunks(self, marks: Marks) -> None:
        """Whether every chunk that is named is there, and which ones nobody names."""
        for name, error in await self.servers.mark(marks):
            self.findings.add("unreadable", name, str(error))
        self.findings.manifests = marks.manifests
        absent: set[str] = set()
        for bucket in range(BUCKETS):
            absent |= await self._absent(bucket, marks.named(bucket))
        if absent:
            await self._broken(absent)

    async def _absent(self, bucket: int, named: set[str]) -> set[str]:
        """The named chunks of a bucket that no server has."""
        present: set[str] = set()
        for store in self.servers.stores.values():
            async with closing(chunks_on(store, bucket)) as chunks:
                async for info in chunks:
                    present.add(info.name)
                    if info.name not in named:
                        self.findings.unnamed += 1
                        self.findings.unnamed_bytes += max(info.size, 0)
        self._progress(self.findings)
        return named - present

    async def _broken(self, absent: set[str]) -> None:
        """Which objects name chunks that are nowhere."""
        seen: set[str] = set()
        async with closing(self.servers.manifests()) as every:
            async for name, holders in every:
                try:
                    lost = absent.intersection(await chunks_of(name, holders))
                except Corrupt:  # it is told of already
                    continue
                if lost and name not in seen:
                    seen.add(name)
                    why = f"{len(lost)} of its chunks are on no server, such as {min(lost)}"
                    self.findings.add("broken", name, why)

    async def data(self, store: Retrying) -> None:
        """Whether every copy of a server is what it should be, to the last byte."""
        async with (
            closing(store.list(Listing(tombstones=True))) as infos,
            closing(in_batches(infos, _BATCH)) as batches,
        ):
            async for batch in batches:
                async with closing(store.verify_many([info.name for info in batch])) as answers:
                    async for answer in answers:
                        self._verified(store, answer)
                self._progress(self.findings)

    def _verified(self, store: Retrying, answer: BlobInfo | Failed) -> None:
        self.findings.read += 1
        if isinstance(answer, Failed) and not isinstance(answer.error, NotFound):
            self.findings.add("damaged", answer.name, f"on {store.server}: {answer.error}")
