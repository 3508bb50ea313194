"""Export: everything that some servers hold, as an archive.

Of every name the version of the highest rank, from whichever server has it sound. What stood
when the export began is in it, unless it was deleted meanwhile. What is written while it
goes on may be in it; if so, with all its chunks.

An archive that was broken off is gone on with behind its last whole record. Then what was
written between the two parts may be in it or not, as if the export had taken that long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.manifest import decode
from dolmen.cluster.placement import Placement
from dolmen.cluster.verify import verified
from dolmen.errors import Corrupt, DolmenError, Full, NotFound, Outdated, Unavailable
from dolmen.names import checksum_of, is_chunk_name, partition_of
from dolmen.pace import Pace
from dolmen.payload import read_whole
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS, Sink, Writer
from dolmen.replication.begun import Begun, count
from dolmen.replication.patience import PASSING, Pause, ask
from dolmen.replication.report import Progress, Report
from dolmen.replication.side_by_side import naming, side_by_side, told
from dolmen.replication.spooled import spooled
from dolmen.stamps import format_stamp
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, Failed
from dolmen.stores.horizon import horizon_in

BATCH = 1_024
"""Names asked for at once."""
BATCH_BYTES = 64 << 20
_DOUBTFUL = Outdated(
    "the server that has it was away while deletes were forgotten, and this may be one of them; "
    "dolmen replicate --rejoin has it back"
)


async def export(
    groups: Sequence[Group],
    sink: Sink,
    *,
    source: str,
    begun: Begun | None = None,
    progress: Progress | None = None,
    pace: Pace | None = None,
    pause: Pause = asyncio.sleep,
) -> Report:
    """Write what the servers of these groups hold to `sink`, or what `begun` lacks of it.

    `source` is kept in the archive, for people. What can't be read on any server is
    refused in the report. Raises `Unavailable` when a server fails, and what the sink raises.
    """
    begun = begun or Begun()
    writer = Writer(sink, owner=begun.owner, records=begun.records)
    run = _Export(groups, writer, begun, pace or Pace(), pause, progress or (lambda _: None))
    with told():
        if not begun.records:
            await run.begin(source)
        await run.whole()
    return begun.report


class _Export:
    def __init__(
        self,
        groups: Sequence[Group],
        writer: Writer,
        begun: Begun,
        pace: Pace,
        pause: Pause,
        progress: Progress,
    ) -> None:
        self._members = {member.name: member for group in groups for member in group.members}
        self._placement = Placement(groups)
        self._writer, self._begun, self._report = writer, begun, begun.report
        self._pace, self._pause, self._progress = pace, pause, progress
        self._horizons: dict[str, int] = {}
        self._with_manifests: set[int] = set()

    async def begin(self, source: str) -> None:
        """Write the first mark."""
        horizon = format_stamp(await self._learn_horizons())
        await self._writer.mark(EXPORT, {"source": source, "horizon": horizon})

    async def whole(self) -> None:
        """Both passes, as far as they were not gone through before."""
        begun = self._begun
        await self._learn_horizons()
        if len(self._members) == 1:
            await self._learn_total()
        partitions: Sequence[int] = ALL_PARTITIONS
        if not begun.manifests:
            await self._through(partitions, manifests=False)
            await self._writer.mark(MANIFESTS)
            if begun.after is None:  # all of the first pass was gone through now
                partitions = sorted(self._with_manifests)
            begun.after, begun.manifests = None, True
        await self._through(partitions, manifests=True)
        await self._writer.mark(END)
        self._progress(self._report)

    async def _learn_horizons(self) -> int:
        for name, member in self._members.items():
            if member.store.capabilities.stamps and name not in self._horizons:
                with naming(name):
                    notes = await ask(member.store.notes, side="source", pause=self._pause)
                self._horizons[name] = horizon_in(notes)
        return max(self._horizons.values(), default=0)

    async def _learn_total(self) -> None:
        for name, member in self._members.items():
            if member.store.capabilities.digests:
                with naming(name):
                    digests = await ask(member.store.digests, side="source", pause=self._pause)
                self._report.total = sum(digests.counts.values())

    async def _through(self, partitions: Sequence[int], *, manifests: bool) -> None:
        """One pass over the names, a batch at a time."""
        after, batch, size = self._begun.after, list[Wanted](), 0
        if after is not None:
            partitions = [each for each in partitions if each >= partition_of(after)]
        stores = {name: member.store for name, member in self._members.items()}
        listed = dict.fromkeys(stores, partitions)
        async with closing(side_by_side(stores, partitions=listed, pause=self._pause)) as names:
            async for held in names:
                wanted = self._wanted(held)
                name = wanted.info.name
                if after is not None and (partition_of(name), name) <= _place(after):
                    continue
                self._report.compared += not manifests
                if (wanted.info.kind == Kind.MANIFEST) != manifests:
                    if not manifests:
                        self._with_manifests.add(partition_of(name))
                elif self._doubtful(wanted):
                    self._report.refuse(name, _DOUBTFUL, reason="MayBeDeleted")
                else:
                    batch.append(wanted)
                    size += max(wanted.info.size, 0)
                if len(batch) >= BATCH or size >= BATCH_BYTES:
                    await self._bring(batch)
                    batch, size = [], 0
        await self._bring(batch)

    def _wanted(self, held: Mapping[str, BlobInfo]) -> Wanted:
        """The highest rank, and who has it; those first who should."""
        info = max(held.values(), key=lambda each: each.rank)
        order = [self._members[name] for name in held]
        if len(order) > 1:
            ranked = self._placement.of(partition_of(info.name)).order
            order = [each for each in ranked if each.name in held]
        same = (info.kind, info.checksum)
        holders = [
            each for each in order if (held[each.name].kind, held[each.name].checksum) == same
        ]
        return Wanted(info, holders)

    def _doubtful(self, wanted: Wanted) -> bool:
        """Whether it may have been deleted while those who have it were away."""
        newest = max(self._horizons.values(), default=0)
        return (
            wanted.info.kind != Kind.TOMBSTONE
            and wanted.info.stamp <= newest
            and all(self._horizons.get(member.name, newest) < newest for member in wanted.holders)
        )

    async def _bring(self, batch: Sequence[Wanted]) -> None:
        """Write these, in their order."""
        asked: dict[Member, list[str]] = {}
        for info, holders in batch:
            asked.setdefault(holders[0], []).append(info.name)
        async with AsyncExitStack() as stack:
            streams = {
                member: await stack.enter_async_context(closing(member.store.get_many(names)))
                for member, names in asked.items()
            }
            for wanted in batch:
                member = wanted.holders[0]
                answer = await self._next(wanted.info.name, member, streams[member])
                if isinstance(answer, Failed):
                    answer = await self._from_any(wanted)
                await self._write(_raised(answer, wanted.info))
        self._progress(self._report)

    async def _next(
        self, name: str, member: Member, answers: AsyncIterator[Blob | Failed]
    ) -> Blob | Failed:
        """What a server answers for a name, known to be sound."""
        try:
            answer = await anext(answers, None)
            if answer is None:
                return Failed(name, Unavailable("the server left it unanswered"))
            if isinstance(answer, Failed):
                return answer
            return await spooled(
                answer if member.store.capabilities.stamps else await _believed(answer)
            )
        except Full:
            raise
        except DolmenError as error:
            return Failed(name, error)

    async def _from_any(self, wanted: Wanted) -> Blob | Failed:
        """The same from whichever server has it sound; each is asked, and again if need be."""
        name = wanted.info.name

        async def once() -> Blob | Failed:
            failed = []
            for member in wanted.holders:
                async with closing(member.store.get_many([name])) as answers:
                    answer = await self._next(name, member, answers)
                if isinstance(answer, Blob):
                    return answer
                failed.append(answer)
            for answer in failed:
                if isinstance(answer.error, PASSING):
                    raise answer.error
            return next((each for each in failed if isinstance(each.error, Corrupt)), failed[0])

        with naming(", ".join(member.name for member in wanted.holders)):
            return await ask(once, side="source", pause=self._pause)

    async def _write(self, answer: Blob | Failed) -> None:
        begun, report = self._begun, self._report
        if isinstance(answer, Failed):
            if isinstance(answer.error, NotFound):
                report.vanished += 1
                return
            report.refuse(answer.name, answer.error)
            await self._writer.add(answer)
            return
        info = answer.info
        if info.kind == Kind.MANIFEST:
            if not begun.manifests:  # it has just become one
                self._with_manifests.add(partition_of(info.name))
                return
            await self._late_chunks(answer)
        elif is_chunk_name(info.name) and info.kind == Kind.BLOB:
            begun.chunks.add(info.name)
        await self._writer.add(answer)
        count(report, info)
        if wait := self._pace.delay(info.size):
            await self._pause(wait)

    async def _late_chunks(self, manifest: Blob) -> None:
        """Write the chunks a manifest names that were not there when their turn was."""
        with contextlib.suppress(Corrupt):
            for chunk in decode(await read_whole(manifest.payload)).chunks:
                if chunk not in self._begun.chunks:
                    holders = self._placement.of(partition_of(chunk)).order
                    await self._write(await self._from_any(Wanted(_unknown(chunk), holders)))


class Wanted(NamedTuple):
    """A name to be written: what was listed, and the servers that have just that."""

    info: BlobInfo
    holders: Sequence[Member]


def _raised(answer: Blob | Failed, best: BlobInfo) -> Blob | Failed:
    """With the stamp and metadata of the best copy, where a server had this content with less."""
    if isinstance(answer, Failed) or answer.info.rank >= best.rank:
        return answer
    same = answer.info.kind == best.kind and answer.info.checksum == best.checksum
    return Blob(best, answer.payload) if same else answer


def _unknown(name: str) -> BlobInfo:
    return BlobInfo(name, 0, Kind.BLOB, 0, b"")


def _place(name: str) -> tuple[int, str]:
    return partition_of(name), name


async def _believed(blob: Blob) -> Blob:
    """What a server without checksums gave, if it is what its name says it is."""
    checked = await verified(blob, None)
    if checked is None:
        raise Corrupt(f"the data under {blob.info.name} does not have that digest")
    if checked.payload.whole is not None:
        checked.info.checksum = checksum_of(checked.payload.whole)
    return checked
