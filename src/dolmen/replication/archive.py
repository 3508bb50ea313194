"""The archive: what stores hold as one stream, in a file or a pipe.

Nothing but records (`dolmen.record`), in this order:

    MARK "export"     where it comes from, and the horizon of deletes there
    blobs, chunks and tombstones, in list order
    MARK "manifests"
    manifests, in list order; before each, those of its chunks that came too late for theirs
    MARK "end"

so what is put back from the front on never shows an object before its chunks. A mark has
the word as its name and a JSON object as its data. What could not be read is there as a record
of kind REFUSED, with the reason.

The fields that on disk belong to a segment do for an archive what they do there. All its records
bear one *owner*, 16 random bytes, so that a search for the next record never takes one
inside a blob (which may be an archive itself) for it. The *sequence* counts the records from
1, so that none can be missing unnoticed. `flushed` is zero.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from dolmen.errors import BadContent, Corrupt, InvalidName
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.record import (
    HEADER_SIZE,
    MAGIC,
    BlockSums,
    Head,
    Kind,
    block_sums,
    blocks_match,
    decode_head,
    encode_head,
    head_size,
    sums_size,
)
from dolmen.store import Blob, BlobInfo, Failed
from dolmen.stores.gathered import Gathered
from dolmen.stores.records import WHOLE, Framed, Rest, info_of, refusal, refused

EXPORT, MANIFESTS, END = "export", "manifests", "end"
_GATHER = 1 << 20

Sink = Callable[[Sequence[Piece]], Awaitable[None]]
"""Takes the next pieces of a stream."""


class Mark(NamedTuple):
    """One of the three marks, and what it tells."""

    word: str
    facts: Mapping[str, object]


class Damage(NamedTuple):
    """A part of an archive that can't be read."""

    at: int
    """Its first byte, counted from the start of the archive."""
    size: int
    """Its length in bytes; 0 where records are missing as if cut out."""
    records: int | None
    """How many records were lost with it; None where the archive ends."""
    why: str
    name: str = ""
    """The blob's, where that can be read."""

    def __str__(self) -> str:
        name = f" of {self.name}" if self.name else ""
        lost = f", {self.records:,} records lost" if self.records else ""
        return f"from byte {self.at:,} on, {self.size:,} bytes{name}: {self.why}{lost}"


class Writer:
    """Writes records to an archive, from `records` on where it has been begun."""

    def __init__(self, sink: Sink, *, owner: bytes | None = None, records: int = 0) -> None:
        self._sink = sink
        self._owner = owner or os.urandom(16)
        self._records = records
        self._gathered: list[Piece] = []
        self._size = 0

    async def mark(self, word: str, facts: Mapping[str, object] | None = None) -> None:
        """Write a mark, and everything before it."""
        data = json.dumps(facts or {}, ensure_ascii=False).encode()
        info = BlobInfo(word, len(data), Kind.MARK, 0, checksum_of(data))
        await self.add(Blob(info, Bytes(data)))
        await self.flush()

    async def add(self, blob: Blob | Failed) -> None:
        """Write a record. A payload that breaks off breaks off the archive."""
        if isinstance(blob, Failed):
            blob = refusal(blob)
        info, payload = blob.info, blob.payload
        self._records += 1
        head = encode_head(
            *(info.kind, info.name.encode(), info.metadata, payload.size),
            *(info.stamp, info.checksum),
            owner=self._owner,
            arrived=self._records,
        )
        await self._take(head)
        if payload.whole is None:
            running = BlockSums()
            async for piece in payload:
                running.update(piece)
                await self._take(piece)
            await self._take(running.digest())
        else:
            await self._take(payload.whole)
            sums = payload.sums if isinstance(payload, Framed) else block_sums(payload.whole)
            await self._take(sums)

    async def _take(self, piece: Piece) -> None:
        self._gathered.append(piece)
        self._size += len(piece)
        if self._size >= _GATHER:
            await self.flush()

    async def flush(self) -> None:
        """Hand everything to the sink."""
        gathered, self._gathered, self._size = self._gathered, [], 0
        if gathered:
            await self._sink(gathered)


class Reader:
    """Reads an archive, checks everything in it, and goes on behind what is damaged.

    To be iterated once. A blob larger than 4 MiB comes as a payload that is read before the
    next item is asked for, or not at all; where it breaks off, the `Damage` follows.
    Raises what reading the pieces raises, nothing else.
    """

    def __init__(self, pieces: AsyncIterator[Piece]) -> None:
        self._source = Gathered(pieces)
        self._last = 0
        self.owner = b""
        self.records = 0
        """The sequence of the last record that was whole."""
        self.end = 0
        """Where that ends, in bytes from the start."""

    @property
    def passed(self) -> int:
        """Bytes read so far."""
        return self._source.passed

    async def __aiter__(self) -> AsyncIterator[Blob | Failed | Mark | Damage]:
        source = self._source
        while await source.have(1):
            at, why = source.passed, ""
            try:
                head: Head | None = await self._head()
            except Corrupt as error:
                head, why = await self._search(), str(error)
            if head is None:
                yield Damage(at, source.passed - at, None, why)
                return
            lost = head.arrived - self._last - 1
            if why or lost:
                why = why or "records are missing, or not in their order"
                yield Damage(at, source.passed - at, max(lost, 0), why)
            self.owner, self._last = head.owner, head.arrived
            at = source.passed
            item: Blob | Failed | Mark | str | None
            if head.length <= WHOLE:
                item = await self._record(head)
            else:
                source.take(head.data_offset)
                rest = Rest(source, head)
                yield Blob(info_of(head), Stream(head.length, rest.pieces, rereadable=False))
                item = await self._skipped(rest, at + head.size)
            if isinstance(item, str):
                ended = None if source.passed < at + head.size else 1
                name = head.name.decode("ascii", "replace")
                yield Damage(at, source.passed - at, ended, item, name)
                continue
            self.records, self.end = head.arrived, source.passed
            if item is not None:
                yield item

    async def _head(self) -> Head:
        """That of the record that comes next, which is not yet taken; raises `Corrupt`."""
        source = self._source
        if await source.have(HEADER_SIZE):
            await source.have(head_size(source.ahead))
        head = decode_head(source.ahead)
        if self.owner and head.owner != self.owner:
            raise Corrupt("a record of something else")
        if head.kind not in (Kind.MARK, Kind.REFUSED):
            try:
                info_of(head)
            except InvalidName as error:
                raise Corrupt(str(error)) from error
        elif head.length > WHOLE:
            raise Corrupt("a record of that kind is never so long")
        return head

    async def _search(self) -> Head | None:
        """The next head behind one that can't be read, everything before it taken."""
        source = self._source
        source.take(1)
        while await source.have(HEADER_SIZE):
            found = source.find(MAGIC)
            source.take(source.held - len(MAGIC) + 1 if found < 0 else found)
            if found >= 0:
                with contextlib.suppress(Corrupt):
                    return await self._head()
                source.take(1)
        source.take(source.held)
        return None

    async def _record(self, head: Head) -> Blob | Failed | Mark | str:
        """Take a record that fits into memory; what is wrong with it, if something is."""
        source = self._source
        if not await source.have(head.size):
            source.take(source.held)
            return _CUT
        source.take(head.data_offset)
        data = source.take(head.length)
        sums = source.take(sums_size(head.length))
        if not blocks_match(data, sums):
            return _DAMAGED
        if head.kind != Kind.TOMBSTONE and checksum_of(data) != head.checksum:
            return _DAMAGED
        if head.kind == Kind.MARK:
            facts = json.loads(data)
            return Mark(
                head.name.decode("ascii", "replace"), facts if isinstance(facts, dict) else {}
            )
        if head.kind == Kind.REFUSED:
            return refused(head, data)
        return Blob(info_of(head), Framed(data, sums))

    async def _skipped(self, rest: Rest, end: int) -> str | None:
        """Pass over what nobody read of a large record; what is wrong with it, if something is."""
        with contextlib.suppress(BadContent):
            await rest.skip()
        if rest.sound:
            return None
        if self._source.passed == end:
            return _DAMAGED
        self._source.take(self._source.held)
        return _CUT


_CUT = "the archive ends inside this record"
_DAMAGED = "its data fails its checksum"
