"""Import: what an archive holds is written to the servers that should hold it.

An archive is a source like any other: the newer stamp wins, what stands at a server already
is not sent again, and nothing is removed. So it can be broken off and run again, and
more than one can be brought into one cluster. Chunks stand before the manifests that name
them, and those that were there and old are touched, so that no garbage collection takes
them in between. A manifest one of whose chunks is on no server is refused: the chunk was collected
between the two (an import may take longer than the grace time), or is missing in the archive.

What its source had forgotten the deletes of (`dolmen.replication.horizon`), servers that
were empty count as forgotten too. And what may be a delete that the servers forgot since the
archive was made is refused, unless a person says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain

from dolmen.closing import closing
from dolmen.cluster.groups import Group
from dolmen.cluster.manifest import decode
from dolmen.cluster.placement import Placement
from dolmen.errors import BadContent, Corrupt
from dolmen.pace import Pace
from dolmen.payload import Piece, read_whole
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS, Damage, Mark, Reader
from dolmen.replication.patience import Pause, Stopped
from dolmen.replication.receiver import Held, Receiver
from dolmen.replication.replicate import BATCH, BATCH_BYTES
from dolmen.replication.report import Refused, Report
from dolmen.replication.side_by_side import told
from dolmen.replication.spooled import spooled
from dolmen.stamps import parse_stamp
from dolmen.store import Blob, BlobInfo, Failed


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
    held = Held()
    servers = [
        Receiver(member, placement, held, pace or Pace(), pause)
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
        servers: Sequence[Receiver],
        held: Held,
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
                    restored.damaged.add(item.name, str(item))
                case Failed(name, error):
                    restored.lacking.add(name, f"{name}: {error}")
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
            self._restored.damaged.add(blob.info.name, str(error))
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
        named: dict[str, Sequence[str]] = {}
        for server in self._servers:
            for each in server.waiting:
                if each.info.kind == Kind.MANIFEST and not each.touch:
                    data = await read_whole(self._held.blobs[each.info.name].payload)
                    named[each.info.name] = decode(data).chunks
        every = dict.fromkeys(chain.from_iterable(named.values()))
        stand: set[str] = set()
        await _at_once(server.renew(every, stand) for server in self._servers)
        lacking = {
            name: chunk for name, chunks in named.items() for chunk in chunks if chunk not in stand
        }
        for server in self._servers:
            server.refuse(lacking)
        await _at_once(server.bring() for server in self._servers)


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
