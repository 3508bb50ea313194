"""Import: what an archive holds is written to the servers that should hold it.

An archive is a source like any other: the newer stamp wins, what stands at a server already
is not sent again, and nothing is removed. So it can be broken off and run again, and
more than one can be brought into one cluster. Chunks stand before the manifests that name
them, and those that were there and old are touched, so that no garbage collection takes
them in between.

What its source had forgotten the deletes of (`dolmen.replication.horizon`), servers that
were empty count as forgotten too. And what may be a delete that the servers forgot since the
archive was made is refused, unless a person says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from dolmen.closing import closing
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.manifest import decode
from dolmen.cluster.placement import Placement
from dolmen.errors import BadContent, Corrupt
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.payload import Piece, read_whole
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS, Damage, Mark, Reader
from dolmen.replication.compare import Difference, Followed, difference
from dolmen.replication.copy import Copier
from dolmen.replication.horizon import DOUBTFUL
from dolmen.replication.manifests import AT_ONCE, renewed, stat_all
from dolmen.replication.patience import Pause, Stopped, ask, listing
from dolmen.replication.replicate import BATCH, BATCH_BYTES
from dolmen.replication.report import EXAMPLES, Refused, Report
from dolmen.replication.side_by_side import naming, told
from dolmen.replication.spooled import spooled
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, Capabilities, Failed
from dolmen.stores.horizon import HORIZON, NO_HORIZONS, Horizons, horizon_in

T = TypeVar("T")


@dataclass(slots=True)
class Restored:
    """What came of an import."""

    runs: Mapping[str, Report]
    """What was written to each server."""
    source: str = ""
    """Where the archive says it is from."""
    read: int = 0
    """Bytes of the archive that were read."""
    damaged: Refused = field(default_factory=Refused)
    """Parts of the archive that can't be read: the name, where that is known, and where and why."""
    lacking: Refused = field(default_factory=Refused)
    """What could not be read when the archive was made, by name."""
    complete: bool = False
    """The archive was read to its end mark."""
    ends: str = ""
    """Where it ends, if that is inside a record, and why."""


async def restore(
    pieces: AsyncIterator[Piece],
    groups: Sequence[Group],
    *,
    rejoin: bool = False,
    progress: Callable[[Restored], None] | None = None,
    pace: Pace | None = None,
    pause: Pause = asyncio.sleep,
) -> Restored:
    """Write what an archive holds to those servers of these groups that should hold it.

    Raises `BadContent` for what is no archive, `Unavailable` when a server fails, and what
    reading the pieces raises. Must run in a task.
    """
    placement = Placement(groups)
    held = _Held()
    servers = [
        _Server(member, placement, held, pace or Pace(), pause)
        for group in groups
        for member in group.members
    ]
    restored = Restored({server.name: server.report for server in servers})
    reader = Reader(pieces)
    run = _Restore(reader, restored, servers, held, progress or (lambda _: None), rejoin=rejoin)
    with told():
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(closing(server.listing))
            await run.whole()
    return restored


class _Restore:
    def __init__(
        self,
        reader: Reader,
        restored: Restored,
        servers: Sequence[_Server],
        held: _Held,
        progress: Callable[[Restored], None],
        *,
        rejoin: bool,
    ) -> None:
        self._reader, self._restored, self._servers, self._held = reader, restored, servers, held
        self._progress, self._rejoin = progress, rejoin
        self._batch: list[Blob] = []
        self._size = 0

    async def whole(self) -> None:
        """The whole archive."""
        restored, reader = self._restored, self._reader
        # Where the first mark is damaged, nobody knows what was forgotten: all that is old
        # is in doubt.
        await self._begin(0)
        async for item in reader:
            match item:
                case Mark(word, facts):
                    await self._mark(word, facts)
                case Damage(records=None):
                    restored.ends = str(item)
                case Damage():
                    _count(restored.damaged, item.name, str(item))
                case Failed(name, error):
                    _count(restored.lacking, name, f"{name}: {error}")
                case Blob():
                    await self._take(item)
            restored.read = reader.passed
        await self._flush()
        if not reader.owner:
            raise BadContent("this is no archive: it holds no record that can be read")

    async def _mark(self, word: str, facts: Mapping[str, object]) -> None:
        if word == EXPORT:
            self._restored.source = str(facts.get("source", ""))
            await self._begin(parse_stamp(str(facts.get("horizon", ""))))
        elif word == MANIFESTS:
            await self._flush()
        self._restored.complete = word == END

    async def _begin(self, horizon: int) -> None:
        await _at_once(server.begin(horizon, rejoin=self._rejoin) for server in self._servers)

    async def _take(self, blob: Blob) -> None:
        try:
            blob = await spooled(blob)
        except BadContent:
            return  # its damage comes next
        except Corrupt as error:
            _count(self._restored.damaged, blob.info.name, str(error))
            return
        self._batch.append(blob)
        self._size += blob.payload.size
        if len(self._batch) >= BATCH or self._size >= BATCH_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Write what was gathered, manifests last."""
        batch, self._batch, self._size = self._batch, [], 0
        blobs: dict[str, Blob] = {}
        for blob in batch:
            other = blobs.get(blob.info.name)
            if other is None or blob.info.rank > other.info.rank:
                blobs[blob.info.name] = blob
        self._held.blobs = blobs
        infos = [blob.info for blob in blobs.values()]
        await self._bring([info for info in infos if info.kind != Kind.MANIFEST])
        await self._bring([info for info in infos if info.kind == Kind.MANIFEST])
        self._progress(self._restored)

    async def _bring(self, infos: Sequence[BlobInfo]) -> None:
        if not infos:
            return
        for server in self._servers:
            server.waiting = []
        await _at_once(server.compare(infos) for server in self._servers)
        chunks: dict[str, None] = {}
        for server in self._servers:
            for each in server.waiting:
                if each.info.kind == Kind.MANIFEST and not each.touch:
                    data = await read_whole(self._held.blobs[each.info.name].payload)
                    chunks |= dict.fromkeys(decode(data).chunks)
        await _at_once(server.renew(chunks) for server in self._servers)
        await _at_once(server.bring() for server in self._servers)


class _Held:
    """The blobs of a batch, to copy from."""

    capabilities = Capabilities(
        durable=False, largest=0, digests=False, ordered=False, conflicts=False
    )

    def __init__(self) -> None:
        self.blobs: Mapping[str, Blob] = {}

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """Those of these names, each as often as it is asked for."""
        for name in names:
            blob = self.blobs[name]
            yield Blob(blob.info, blob.payload)


class _Server:
    """One of the servers that are written to."""

    def __init__(
        self, member: Member, placement: Placement, held: _Held, pace: Pace, pause: Pause
    ) -> None:
        self.name = member.name
        self.report = Report()
        self.waiting: Sequence[Difference] = []
        """What is to be written to it of the current batch."""
        self.listing = listing(member.store, ALL_PARTITIONS, side="destination", pause=pause)
        self._member, self._store, self._placement = member, member.store, placement
        self._followed = Followed(self.listing)
        self._copier = Copier(held, member.store, self.report, pace, pause)
        self._pause = pause
        self._horizons = NO_HORIZONS

    async def begin(self, horizon: int, *, rejoin: bool) -> None:
        """Learn what was forgotten here. `horizon` is the archive's."""
        if not self._store.capabilities.stamps:
            return
        with naming(self.name):
            own = horizon_in(await self._ask(self._store.notes))
            if horizon > own and await self._ask(self._is_empty):
                noted = format_stamp(horizon).encode()
                await self._ask(lambda: self._store.note(HORIZON, noted))
                own = horizon
        self._horizons = Horizons(horizon, own, rejoin)

    async def compare(self, infos: Sequence[BlobInfo]) -> None:
        """Find out which of these it should hold and lacks, or has at a lower rank."""
        mine = [info for info in infos if self._rightful(info.name)]
        with naming(self.name):
            standing = await self._standing(mine)
        stamped = self._store.capabilities.stamps
        found = [
            difference(
                info, standing.get(info.name), self._horizons, stamped=stamped, ranked=stamped
            )
            for info in mine
        ]
        self.report.compared += len(mine)
        self.waiting = [each for each in found if each and not each.doubtful]
        for each in found:
            if each and each.doubtful:
                self.report.refuse(each.info.name, DOUBTFUL, reason="MayBeDeleted")

    async def renew(self, chunks: Iterable[str]) -> None:
        """Make those chunks young that it has and should hold."""
        mine = [chunk for chunk in chunks if self._rightful(chunk)]
        with naming(self.name):
            for at in range(0, len(mine), AT_ONCE):
                some = mine[at : at + AT_ONCE]
                for info in await stat_all(self._store, some, "destination", self._pause):
                    if info is not None:
                        await renewed(self._store, info, self._pause)

    async def bring(self) -> None:
        """Write what is waiting."""
        with naming(self.name):
            await self._copier.bring(self.waiting)

    def _rightful(self, name: str) -> bool:
        return self._member in self._placement.of(partition_of(name)).rightful

    async def _standing(self, infos: Sequence[BlobInfo]) -> Mapping[str, BlobInfo | None]:
        """What stands: from the listing as long as names come in its order, else asked for."""
        standing: dict[str, BlobInfo | None] = {}
        passed = []
        for info in infos:
            if self._followed.behind(info.name):
                passed.append(info.name)
            else:
                standing[info.name] = await self._followed.find(info.name)
        for at in range(0, len(passed), AT_ONCE):
            some = passed[at : at + AT_ONCE]
            found = await stat_all(self._store, some, "destination", self._pause)
            standing |= zip(some, found, strict=True)
        return standing

    async def _is_empty(self) -> bool:
        async with closing(self._store.list(tombstones=True)) as infos:
            return await anext(infos, None) is None

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        return await ask(question, side="destination", pause=self._pause)


async def _at_once(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all of this; raises the first `Stopped`, when nothing runs any more."""
    stops: list[Stopped] = []
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except* Stopped as stopped:
        stops += [error for error in stopped.exceptions if isinstance(error, Stopped)]
    if stops:
        raise stops[0]


def _count(counted: Refused, name: str, why: str) -> None:
    counted.count += 1
    if len(counted.examples) < EXAMPLES:
        counted.examples.append((name, why))
