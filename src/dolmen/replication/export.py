"""Export: what a store holds as an archive, one stream in a file or a pipe.

An archive is a log of records (`dolmen.stores.records`), in this order:

    MARK "export"     where it comes from, and the purge watermark there
    blobs, chunks and tombstones, in list order
    MARK "manifests"
    manifests, in list order; before each, those of its chunks that came too late for theirs
    MARK "end"        how many records came before it

so whoever reads it from the front never shows an object before its chunks. Nothing needs to be
stopped for an export: what was there when it began is in it, unless it was deleted meanwhile;
what is written while it goes on may be in it, and if so, with all its chunks. An export that
was interrupted goes on behind the last whole record (`Progress`).
"""

from __future__ import annotations

import asyncio
import os
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.cluster.manifest import decode
from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    NotFound,
    TooLarge,
)
from dolmen.names import CHUNK_PREFIX, checksum_of, is_chunk_name, matches_name, partition_of
from dolmen.pace import Pace
from dolmen.payload import Bytes, Piece, read_whole
from dolmen.record import Kind
from dolmen.replication.report import Report
from dolmen.stamps import format_stamp
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Listing
from dolmen.stores.records import WHOLE, Damage, Mark, RecordReader, encode
from dolmen.stores.watermark import watermark_in

EXPORT, MANIFESTS, END = "export", "manifests", "end"
_BATCH = 1_024
_BATCH_BYTES = 64 << 20
_UNCHECKED_MAX = 256 << 20
"""The largest blob exported from a store without checksums: it is read whole to have one."""


class _Chunks:
    """Which chunks an archive has, by 64 bits of their digests."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._sorted = True

    def add(self, name: str) -> None:
        self._digests.append(_short(name))
        self._sorted = False

    def __contains__(self, name: str) -> bool:
        if not self._sorted:
            self._digests, self._sorted = array("Q", sorted(self._digests)), True
        at = bisect_left(self._digests, _short(name))
        return at < len(self._digests) and self._digests[at] == _short(name)


def _short(name: str) -> int:
    return int(name[len(CHUNK_PREFIX) : len(CHUNK_PREFIX) + 16], 16)


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
    chunks: _Chunks = field(default_factory=_Chunks)
    report: Report = field(default_factory=Report)

    def take(self, item: Blob | Failed | Mark) -> None:
        """Count a record that the archive has."""
        self.records += 1
        if isinstance(item, Mark):
            self.complete = item.word == END
            if item.word == EXPORT:
                self.source = str(item.facts.get("source", ""))
            elif item.word == MANIFESTS:
                self.manifests, self.after = True, None
            return
        name = item.name if isinstance(item, Failed) else item.info.name
        chunk = is_chunk_name(name)
        if not (self.manifests and chunk):
            self.after = name
        if isinstance(item, Failed):
            self.report.refuse(name, item.error)
        elif item.info.kind == Kind.TOMBSTONE:
            self.report.tombstones += 1
        else:
            self.report.copied += 1
            self.report.bytes += item.info.size
            if chunk:
                self.chunks.add(name)


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
        if isinstance(item, Blob) and item.payload.whole is None:
            with suppress(BadContent):
                async for _ in item.payload:
                    pass
                found.take(item)
        else:
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
    return encode(_Export(store, begun, show, pace or Pace()).items(source), begun.owner)


class _Export:
    def __init__(
        self, store: BlobStore, begun: Progress, show: Callable[[Report], None], pace: Pace
    ) -> None:
        self._store, self._begun, self._show, self._pace = store, begun, show, pace
        self._with_manifests: list[int] = []

    async def items(self, source: str) -> AsyncIterator[Blob | Failed | Mark]:
        """Everything that goes into the archive."""
        begun = self._begun
        async for item in self._all(source):
            begun.take(item)
            yield item
            if isinstance(item, Blob) and (wait := self._pace.delay(item.info.size)):
                await asyncio.sleep(wait)
        self._show(begun.report)

    async def _all(self, source: str) -> AsyncIterator[Blob | Failed | Mark]:
        begun, stamped = self._begun, self._store.capabilities.stamps
        if not begun.records:
            watermark = watermark_in(await self._store.notes()) if stamped else 0
            yield Mark(EXPORT, {"source": source, "purged": format_stamp(watermark)})
        if self._store.capabilities.digests:
            begun.report.total = (await self._store.digests()).count
        partitions: Sequence[int] = Listing().partitions
        if not begun.manifests:
            whole = begun.after is None
            async for item in self._pass(partitions, manifests=False):
                yield item
            partitions = self._with_manifests if whole else partitions
            yield Mark(MANIFESTS, {})
        async for item in self._pass(partitions, manifests=True):
            yield item
        yield Mark(END, {"records": begun.records})

    async def _pass(
        self, partitions: Sequence[int], *, manifests: bool
    ) -> AsyncIterator[Blob | Failed]:
        """One pass over the names, a batch at a time."""
        after, names, size = self._begun.after, list[str](), 0
        if after is not None:
            partitions = [each for each in partitions if each >= partition_of(after)]
        listing = Listing(partitions, after, tombstones=not manifests)
        async with closing(self._store.list(listing)) as infos:
            async for info in infos:
                self._begun.report.compared += not manifests
                if (info.kind == Kind.MANIFEST) is not manifests:
                    if not manifests:
                        self._has_manifests(info.name)
                    continue
                names.append(info.name)
                size += max(info.size, 0)
                if len(names) >= _BATCH or size >= _BATCH_BYTES:
                    async for item in self._read(names, manifests=manifests):
                        yield item
                    names, size = [], 0
        async for item in self._read(names, manifests=manifests):
            yield item

    def _has_manifests(self, name: str) -> None:
        partition = partition_of(name)
        if not self._with_manifests or self._with_manifests[-1] != partition:
            self._with_manifests.append(partition)

    async def _read(self, names: Sequence[str], *, manifests: bool) -> AsyncIterator[Blob | Failed]:
        if not names:
            return
        async with closing(self._store.get_many(names)) as answers:
            async for answer in answers:
                item = await self._checked(answer)
                if isinstance(item, Failed) and isinstance(item.error, NotFound):
                    self._begun.report.vanished += 1
                    continue
                if isinstance(item, Blob) and item.info.kind == Kind.MANIFEST:
                    if not manifests:  # it has become one just now
                        self._has_manifests(item.info.name)
                        continue
                    async for chunk in self._late_chunks(item):
                        yield chunk
                yield item
        self._show(self._begun.report)

    async def _checked(self, answer: Blob | Failed) -> Blob | Failed:
        """A blob that can be written to the archive to its end, with its checksum."""
        if isinstance(answer, Failed) or answer.info.kind == Kind.TOMBSTONE:
            return answer
        name = answer.info.name
        if self._store.capabilities.stamps:
            if answer.payload.whole is None and answer.info.size > WHOLE:
                # A record that breaks off would end the archive: its reading is tried before.
                async with closing(self._store.verify_many([name])) as verified:
                    async for found in verified:
                        if isinstance(found, Failed):
                            return found
            return answer
        try:
            if answer.payload.size > _UNCHECKED_MAX:
                raise TooLarge(
                    f"{name} is too large to be exported from a store without checksums; "
                    "replicate it to a dolmen blob server, and export that"
                )
            data = await read_whole(answer.payload)
            if not matches_name(name, data):
                raise Corrupt(f"the content under {name} has another digest")
        except DolmenError as error:
            return Failed(name, error)
        info = answer.info
        known = BlobInfo(name, len(data), info.kind, 0, checksum_of(data), info.metadata)
        return Blob(known, Bytes(data))

    async def _late_chunks(self, manifest: Blob) -> AsyncIterator[Blob | Failed]:
        """The chunks a manifest names that were not there when their turn was."""
        try:
            chunks = decode(await read_whole(manifest.payload)).chunks
        except DolmenError:
            return  # it is exported as it is; whoever reads it finds the same
        late = [chunk for chunk in chunks if chunk not in self._begun.chunks]
        if late:
            async for item in self._read(list(dict.fromkeys(late)), manifests=False):
                yield item
