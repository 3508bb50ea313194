"""Archives: what a store holds as one stream, in a file or a pipe. Written by `export`, read by
`import_archive`.

An archive is a log of records (read `dolmen.stores.record_reader` first), in this order:

    MARK "export"     where it comes from, and the purge watermark there
    blobs, chunks and tombstones, in list order
    MARK "manifests"
    manifests, in list order; before each, those of its chunks that came too late for theirs,
                      and the same mark again
    MARK "end"        how many records came before it

Who reads it from the front, and writes all that came before a mark before what comes behind it,
never shows an object before its chunks. Nothing needs to be stopped for an export: what was there
when it began is in it, unless it was deleted meanwhile; what is written while it goes on may be in
it, and if so, with all its chunks. It goes on behind the last whole record of one begun before.

To an import it is a source like any other: what the store lacks or has at a lower rank is written,
the newer stamp wins and nothing is removed. So it can be interrupted and run again, and takes
several archives one after the other. A manifest one of whose chunks is missing is refused.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.errors import BadContent, BadSetting, Corrupt, DolmenError, NotFound, Unavailable
from dolmen.names import is_chunk_name, partition_of
from dolmen.pace import Pace
from dolmen.payload import Piece
from dolmen.record import Kind
from dolmen.replication.manifests import chunks_in, missing
from dolmen.replication.purge import SETTLE, admitted
from dolmen.replication.report import Refused, Report
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import (
    ALL_PARTITIONS,
    Blob,
    BlobInfo,
    BlobStore,
    Failed,
    Listing,
    Outcome,
    Put,
    Write,
)
from dolmen.stores.base import in_batches
from dolmen.stores.record_reader import Damage, RecordReader
from dolmen.stores.records import Mark, encode
from dolmen.stores.watermark import watermark_in

EXPORT, MANIFESTS, END = "export", "manifests", "end"
_BATCH = 1_024
_MAYBE = "it may have been deleted since, and that forgotten; dolmen import --rejoin brings it back"


def _check_stamps(store: BlobStore) -> None:
    if not store.capabilities.stamps:
        raise BadSetting(
            "an archive has stamps and checksums, which a plain sos server knows nothing of: "
            "replicate between that and a dolmen store"
        )


@dataclass(slots=True)
class Progress:
    """How far an export is: what a file that is gone on with holds, or nothing."""

    owner: bytes = field(default_factory=lambda: os.urandom(16))
    records: int = 0
    end: int = 0
    """Bytes up to the end of the last whole record."""
    source: str = ""
    after: str | None = None
    """The last name of the pass it is in."""
    manifests: bool = False
    """It is in the second pass."""
    complete: bool = False
    chunks: set[int] = field(default_factory=set)
    """Those it has, by 64 bits of their names."""
    report: Report = field(default_factory=Report)

    def take(self, item: Blob | Failed | Mark) -> None:
        """Count a record that the archive has."""
        self.records += 1
        if isinstance(item, Mark):
            self.complete = item.word == END
            if item.word == EXPORT:
                self.source = str(item.facts.get("source", ""))
            elif item.word == MANIFESTS and not self.manifests:
                self.manifests, self.after = True, None
            return
        name = item.name if isinstance(item, Failed) else item.info.name
        if not (self.manifests and is_chunk_name(name)):
            self.after = name
        if isinstance(item, Failed):
            self.report.refuse(name, item.error)
        else:
            self.report.wrote(item.info, Outcome.CREATED)
            if is_chunk_name(name):
                self.chunks.add(hash(name))


async def progress_of(pieces: AsyncIterator[Piece]) -> Progress:
    """Read an archive that was begun. Raises `Corrupt` for one that can't be gone on with."""
    reader, found = RecordReader(pieces), Progress()
    async for item in reader:
        if found.complete:
            raise Corrupt("something follows the end of the archive")
        if isinstance(item, Damage):
            if not item.ends:
                raise Corrupt(f"the archive is damaged {item}")
            break
        with suppress(BadContent):
            if isinstance(item, Blob):
                async for _ in item.payload:
                    pass
            found.take(item)
    if not reader.owner:
        raise Corrupt("this is not an archive of dolmen")
    found.owner, found.end = reader.owner, reader.end
    return found


def export(
    store: BlobStore,
    *,
    source: str,
    begun: Progress,
    show: Callable[[Report], None] = lambda _: None,
    pace: Pace | None = None,
) -> AsyncIterator[Piece]:
    """The archive of a store, or what `begun` lacks of it, whose report is kept up to date.

    `source` says where it comes from, for people. What can't be read is refused in the report
    and in the archive. Raises what listing the store raises.
    """
    _check_stamps(store)
    return encode(_Export(store, begun, show, pace or Pace()).items(source), begun.owner)


@dataclass(slots=True)
class _Export:
    store: BlobStore
    begun: Progress
    show: Callable[[Report], None]
    pace: Pace

    async def items(self, source: str) -> AsyncIterator[Blob | Failed | Mark]:
        """Everything that goes into the archive."""
        async for item in self._all(source):
            self.begun.take(item)
            yield item
            if isinstance(item, Blob) and (wait := self.pace.delay(item.info.size)):
                await asyncio.sleep(wait)

    async def _all(self, source: str) -> AsyncIterator[Blob | Failed | Mark]:
        begun, store = self.begun, self.store
        if not begun.records:
            purged = format_stamp(watermark_in(await store.notes()))
            yield Mark(EXPORT, {"source": source, "purged": purged})
        if store.capabilities.digests:
            begun.report.total = (await store.digests()).count
        if not begun.manifests:
            async for item in self._pass(manifests=False):
                if isinstance(item, Failed) or item.info.kind != Kind.MANIFEST:
                    yield item  # a manifest has become one just now, and comes in its time
        yield Mark(MANIFESTS, {})
        async for item in self._pass(manifests=True):
            if isinstance(item, Blob) and (late := await self._late_chunks(item)):
                async for chunk in self._read(late):
                    yield chunk
                yield Mark(MANIFESTS, {})
            yield item
        yield Mark(END, {"records": begun.records})

    async def _pass(self, *, manifests: bool) -> AsyncIterator[Blob | Failed]:
        """One pass over the names: the manifests, or all others."""
        after = self.begun.after
        partitions = ALL_PARTITIONS if after is None else ALL_PARTITIONS[partition_of(after) :]
        listing = Listing(partitions, after, tombstones=not manifests)
        async with closing(self.store.list(listing)) as infos:
            wanted = (info async for info in infos if (info.kind == Kind.MANIFEST) is manifests)
            async for batch in in_batches(wanted, _BATCH, lambda info: info.size):
                self.begun.report.compared += len(batch)
                async for item in self._read([info.name for info in batch]):
                    yield item

    async def _read(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        async with closing(self.store.get_many(names)) as answers:
            async for answer in answers:
                if isinstance(answer, Failed) and isinstance(answer.error, NotFound):
                    self.begun.report.vanished += 1
                    continue
                if isinstance(answer, Blob) and answer.payload.whole is None:
                    # A record that breaks off would end the archive: what is streamed is read
                    # to its end before.
                    async with closing(self.store.verify_many([answer.info.name])) as verified:
                        async for found in verified:
                            if isinstance(found, Failed):
                                answer = found
                yield answer
        self.show(self.begun.report)

    async def _late_chunks(self, blob: Blob) -> Sequence[str]:
        """The chunks a manifest names that were not there when their turn was."""
        if blob.info.kind != Kind.MANIFEST:
            return ()
        try:
            chunks = await chunks_in(blob)
        except DolmenError:
            return ()  # it is exported as it is; whoever reads it finds the same
        return [chunk for chunk in chunks if hash(chunk) not in self.begun.chunks]


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
) -> Imported:
    """Write to a store what an archive holds and the store lacks.

    What may have been deleted from the store, which has forgotten that by now, is refused
    unless `rejoin` says to have it back. Raises `BadContent` for what is not an archive, and
    what listing the store raises.
    """
    _check_stamps(store)
    # Where the first mark is damaged nobody knows what was forgotten: the old is in doubt.
    purged = math.inf if rejoin else 0
    return await _Import(RecordReader(pieces), store, pace or Pace(), show, purged).run()


@dataclass(slots=True)
class _Import:
    reader: RecordReader
    store: BlobStore
    pace: Pace
    show: Callable[[Imported], None]
    purged: float
    """Up to which stamp it is known what was deleted of what the archive holds."""
    imported: Imported = field(default_factory=Imported)
    mark: Mark | None = None
    """The one that was read last."""
    sent: deque[BlobInfo] = field(default_factory=deque)
    """What was not answered yet, in order."""
    manifests: bool = False
    """The second part has begun."""
    reached: int = 0
    """The partition that its order has come to."""
    watermark: int = 0
    asked: float = -SETTLE
    """The store's watermark, and when it was asked for that, in monotonic seconds."""

    async def run(self) -> Imported:
        """The whole archive, mark by mark: all that comes before one is written before it."""
        imported, reader, items = self.imported, self.reader, aiter(self.reader)
        while (mark := await self._bring(items)) is not None:
            imported.complete = False
            if mark.word == EXPORT:
                imported.source = str(mark.facts.get("source", ""))
                purged = 0
                with suppress(DolmenError):  # there is none
                    purged = parse_stamp(str(mark.facts.get("purged", "")))
                if purged > watermark_in(await self.store.notes()):
                    await admitted(self.store, purged)
                self.purged = max(purged, self.purged)
            elif mark.word == MANIFESTS and not self.manifests:
                self.manifests, self.reached = True, 0
            elif mark.word == END:
                counted = mark.facts.get("records")
                if isinstance(counted, int):
                    imported.missing = max(0, counted + 1 - reader.records)
                imported.complete = not imported.missing and not imported.damaged.count
        imported.read = reader.passed
        if not reader.owner:
            raise BadContent("this is not an archive: it holds no record that can be read")
        self.show(imported)
        return imported

    async def _bring(self, items: AsyncIterator[Blob | Failed | Mark | Damage]) -> Mark | None:
        """Write what comes before the next mark; returns that, None at the end."""
        self.mark = None
        self.sent.clear()
        async with (
            closing(self._lacking(self._until_mark(items))) as lacking,
            closing(self.store.write_many(lacking)) as answers,
        ):
            async for answer in answers:
                self._answered(answer)
        return self.mark

    async def _until_mark(
        self, items: AsyncIterator[Blob | Failed | Mark | Damage]
    ) -> AsyncIterator[Blob]:
        imported = self.imported
        async for item in items:
            imported.read = self.reader.passed
            if isinstance(item, Mark):
                self.mark = item
                return
            if isinstance(item, Damage) and item.ends:
                imported.ends = str(item)
            elif isinstance(item, Damage):
                imported.damaged.add(item.name, str(item))
            elif isinstance(item, Failed):
                imported.lacking.add(item.name, f"{item.name}: {item.error}")
            else:
                yield item

    async def _lacking(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Write]:
        """What the store lacks or has at a lower rank, as writes; both come in list order.

        Chunks among the manifests are out of this order, and written again if they are there.
        """
        report = self.imported.report
        listing = Listing(ALL_PARTITIONS[self.reached :], tombstones=True)
        async with closing(self.store.list(listing)) as infos:
            current = await anext(infos, None)
            async for blob in blobs:
                info, there = blob.info, False
                report.compared += 1
                if not (self.manifests and is_chunk_name(info.name)):
                    self.reached = partition_of(info.name)
                    place = self.reached, info.name
                    while current and (partition_of(current.name), current.name) < place:
                        current = await anext(infos, None)
                    if current and current.name == info.name:
                        if current.rank >= info.rank:
                            continue
                        # A delete newer than its tombstone may have been forgotten.
                        there = current.kind != Kind.TOMBSTONE
                if not there and await self._in_doubt(info):
                    report.refuse(info.name, DolmenError(_MAYBE), reason="MayBeDeleted")
                elif error := await self._without_chunk(blob):
                    report.refuse(info.name, error)
                else:
                    if wait := self.pace.delay(info.size):
                        await asyncio.sleep(wait)
                    self.sent.append(info)
                    yield Write.copy(blob)

    async def _in_doubt(self, info: BlobInfo) -> bool:
        """Whether something may have been deleted here, and that forgotten."""
        # A purge is noted for longer than that before the first delete goes.
        if time.monotonic() - self.asked >= SETTLE / 2:
            self.asked = time.monotonic()
            with suppress(Unavailable):  # there is no purge while a server is away
                self.watermark = watermark_in(await self.store.notes())
        return info.kind != Kind.TOMBSTONE and self.purged < self.watermark >= info.stamp

    async def _without_chunk(self, blob: Blob) -> DolmenError | None:
        """What is wrong with a manifest one of whose chunks is missing; all others are young."""
        try:
            if blob.info.kind == Kind.MANIFEST:
                for chunk in await missing(self.store, await chunks_in(blob)):
                    return Corrupt(f"{chunk}, which it names, is missing")
        except DolmenError as error:
            return error
        return None

    def _answered(self, answer: Put | Failed) -> None:
        report, info = self.imported.report, self.sent.popleft()
        if isinstance(answer, Put):
            report.wrote(info, answer.outcome)
        else:
            report.refuse(answer.name, answer.error)
        self.show(self.imported)
