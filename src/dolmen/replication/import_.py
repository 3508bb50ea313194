"""Import: what an archive holds (`dolmen.replication.export`) is written to a store.

An archive is a source like any other: what the store lacks or has at a lower rank is written,
the newer stamp wins and nothing is removed. So an import can be interrupted and run again,
and takes several archives one after the other. Chunks are there before the manifests that
name them, and young, so that no garbage collection takes them in between; a manifest one of
whose chunks is missing is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.manifest import decode
from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    InvalidName,
    NotFound,
    Outdated,
    TooLarge,
)
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.payload import Piece, read_whole
from dolmen.record import Kind
from dolmen.replication.export import END, EXPORT
from dolmen.replication.report import Refused, Report
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Listing, Outcome, Put, Write
from dolmen.stores.base import UnderWay
from dolmen.stores.records import Damage, Mark, RecordReader
from dolmen.stores.watermark import WATERMARK, watermark_in

_YOUNG = 12 * 3600
"""Chunks that arrived less than so many seconds ago are safe from garbage collection."""
_AT_ONCE = 64


@dataclass(slots=True)
class Imported:
    """What came of an import."""

    report: Report = field(default_factory=Report)
    """What was written to the store."""
    source: str = ""
    """Where the archive says it comes from."""
    read: int = 0
    """Bytes of the archive that were read."""
    damaged: Refused = field(default_factory=Refused)
    """Parts of the archive that can't be read."""
    lacking: Refused = field(default_factory=Refused)
    """What could not be read when the archive was made, by name."""
    missing: int = 0
    """Records that are not in the archive though its end mark counts them."""
    ends: str = ""
    """Where it ends, if that is inside a record."""
    complete: bool = False
    """The archive was read to its end mark, and nothing is missing."""


async def import_archive(
    pieces: AsyncIterator[Piece],
    store: BlobStore,
    *,
    rejoin: bool = False,
    show: Callable[[Imported], None] = lambda _: None,
    pace: Pace | None = None,
    now: Callable[[], float] = time.time,
) -> Imported:
    """Write to a store what an archive holds and the store lacks.

    What may have been deleted from the store, which has forgotten that by now, is refused
    unless `rejoin` says to have it back. Raises `BadContent` for what is not an archive, and
    what listing the store raises.
    """
    return await _Import(RecordReader(pieces), store, pace or Pace(), show, now).run(rejoin=rejoin)


class _Import:
    def __init__(
        self,
        reader: RecordReader,
        store: BlobStore,
        pace: Pace,
        show: Callable[[Imported], None],
        now: Callable[[], float],
    ) -> None:
        self._reader, self._store, self._pace = reader, store, pace
        self._show, self._now = show, now
        self._imported = Imported()
        self._mark: Mark | None = None
        self._sent: deque[tuple[BlobInfo, bool]] = deque()
        """What was not answered yet, in order, and whether its data is a stream."""
        self._doubtful = 0
        """What is not above this stamp may have been deleted here, and that forgotten."""

    async def run(self, *, rejoin: bool) -> Imported:
        """The whole archive, mark by mark: all that comes before one is written before it."""
        imported, reader, store = self._imported, self._reader, self._store
        watermark = watermark_in(await store.notes()) if store.capabilities.stamps else 0
        # Where the first mark is damaged nobody knows what was forgotten: the old is in doubt.
        self._doubtful = 0 if rejoin else watermark
        items = aiter(reader)
        while (mark := await self._bring(items)) is not None:
            imported.complete = False
            if mark.word == EXPORT:
                imported.source = str(mark.facts.get("source", ""))
                purged = await self._take_over(mark, watermark)
                self._doubtful = 0 if rejoin or purged >= watermark else watermark
            elif mark.word == END:
                counted = mark.facts.get("records")
                if isinstance(counted, int):
                    imported.missing = max(0, counted + 1 - reader.records)
                imported.complete = not imported.missing and not imported.damaged.count
        imported.read = reader.passed
        if not reader.owner:
            raise BadContent("this is not an archive: it holds no record that can be read")
        self._show(imported)
        return imported

    async def _bring(self, items: AsyncIterator[Blob | Failed | Mark | Damage]) -> Mark | None:
        """Write what comes before the next mark; returns that, None at the end."""
        self._mark = None
        self._sent.clear()
        async with (
            closing(self._lacking(self._until_mark(items))) as lacking,
            closing(self._store.write_many(lacking)) as answers,
        ):
            async for answer in answers:
                self._answered(answer)
        return self._mark

    async def _until_mark(
        self, items: AsyncIterator[Blob | Failed | Mark | Damage]
    ) -> AsyncIterator[Blob]:
        imported = self._imported
        async for item in items:
            imported.read = self._reader.passed
            if isinstance(item, Mark):
                self._mark = item
                return
            if isinstance(item, Damage) and item.ends:
                imported.ends = str(item)
            elif isinstance(item, Damage):
                imported.damaged.add(item.name, str(item))
            elif isinstance(item, Failed):
                imported.lacking.add(item.name, f"{item.name}: {item.error}")
            else:
                yield item

    async def _take_over(self, mark: Mark, watermark: int) -> int:
        """The purge watermark of the archive, which an empty store takes over; 0 for none."""
        try:
            purged = parse_stamp(str(mark.facts.get("purged", "")))
        except InvalidName:
            return 0
        if purged > watermark and await self._is_empty():
            await self._store.note(WATERMARK, format_stamp(purged).encode())
        return purged

    async def _is_empty(self) -> bool:
        if not self._store.capabilities.stamps:
            return False
        async with closing(self._store.list(Listing(tombstones=True))) as infos:
            return await anext(infos, None) is None

    async def _lacking(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Write]:
        """What the store lacks or has at a lower rank, as writes; both come in list order."""
        report, stamped = self._imported.report, self._store.capabilities.stamps
        async with closing(self._store.list(Listing(tombstones=True))) as infos:
            current: BlobInfo | None = None
            reached, asked = (-1, ""), (-1, "")
            async for blob in blobs:
                info = blob.info
                report.compared += 1
                place = (partition_of(info.name), info.name)
                out_of_order, asked = place < asked, max(asked, place)
                while reached < place:
                    current = await anext(infos, None)
                    reached = _place_of(current)
                there = current if reached == place and not out_of_order else None
                if there is not None and (not stamped or there.rank >= info.rank):
                    continue
                if not stamped and info.kind != Kind.BLOB:
                    if info.kind == Kind.MANIFEST:
                        report.refuse(info.name, _NO_MANIFESTS)
                    continue
                doubtful = info.kind != Kind.TOMBSTONE and info.stamp <= self._doubtful
                if there is None and doubtful:
                    report.refuse(info.name, _MAYBE_DELETED, reason="MayBeDeleted")
                    continue
                if info.kind == Kind.MANIFEST and (error := await self._without_chunk(blob)):
                    report.refuse(info.name, error)
                    continue
                if wait := self._pace.delay(info.size):
                    await asyncio.sleep(wait)
                self._sent.append((info, blob.payload.whole is None))
                yield Write.copy(blob)

    async def _without_chunk(self, manifest: Blob) -> DolmenError | None:
        """What is wrong where a chunk that a manifest names is missing; all are made young."""
        try:
            chunks = decode(await read_whole(manifest.payload)).chunks
            async with UnderWay[None]() as under_way:
                for chunk in dict.fromkeys(chunks):
                    if len(under_way) == _AT_ONCE:
                        await under_way.next()
                    under_way.add(self._renew(chunk))
                while under_way:
                    await under_way.next()
        except DolmenError as error:
            return error
        return None

    async def _renew(self, chunk: str) -> None:
        try:
            info = await self._store.stat(chunk)
            if self._now() - info.arrived >= _YOUNG:
                touch = Write.touch(
                    chunk, stamp=info.stamp, checksum=info.checksum, metadata=info.metadata
                )
                await self._store.write(touch)
        except NotFound as error:
            raise Corrupt(f"{chunk}, which it names, is missing") from error

    def _answered(self, answer: Put | Failed) -> None:
        report, (info, stream) = self._imported.report, self._sent.popleft()
        if isinstance(answer, Failed):
            if not (stream and isinstance(answer.error, BadContent)):  # its damage comes next
                report.refuse(answer.name, answer.error)
        elif answer.outcome is Outcome.UNCHANGED:
            report.touched += 1
        elif answer.outcome is Outcome.CREATED and info.kind == Kind.TOMBSTONE:
            report.tombstones += 1
        elif answer.outcome is Outcome.CREATED:
            report.copied += 1
            report.bytes += info.size
        self._show(self._imported)


def _place_of(info: BlobInfo | None) -> tuple[int, str]:
    return (partition_of(info.name), info.name) if info else (65_536, "")


_NO_MANIFESTS = TooLarge("stored in chunks, which a plain sos server can't join")
_MAYBE_DELETED = Outdated(
    "it may have been deleted since, for longer than deletes are remembered; "
    "dolmen import --rejoin brings it back"
)
