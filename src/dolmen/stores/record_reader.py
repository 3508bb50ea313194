"""Taking a stream of records apart: strictly on the wire, going on behind damage in an archive.

Read first: `dolmen.stores.records`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, cast

from dolmen.errors import BadContent, Corrupt
from dolmen.payload import Piece, Stream
from dolmen.record import (
    BLOCK,
    HEADER_SIZE,
    MAGIC,
    BlockSums,
    Head,
    decode_head,
    head_size,
    sums_size,
)
from dolmen.store import Blob, BlobInfo, Failed
from dolmen.stores.records import DAMAGED, TRAVELS, WHOLE, Framed, Mark, item_of, sound_records


class Damage(NamedTuple):
    """A part of an archive that can't be read."""

    at: int
    """Its first byte, counted from the start of the archive."""
    size: int
    """Its length in bytes."""
    why: str
    name: str
    """The blob's, where that can be read, else empty."""
    ends: bool
    """Nothing follows: the archive is cut off here."""

    def __str__(self) -> str:
        name = f" of {self.name}" if self.name else ""
        return f"from byte {self.at:,} on, {self.size:,} bytes{name}: {self.why}"


def decode(pieces: AsyncIterator[Piece]) -> AsyncIterator[Blob | Failed]:
    """The blobs of a stream on the wire, each checked against its block checksums.

    A blob larger than 4 MiB comes as a payload that must be read to its end before the next
    one is asked for. Raises `BadContent` for a stream that is cut off or damaged, naming the
    record (counted from 1).
    """
    return cast("AsyncIterator[Blob | Failed]", aiter(_OnTheWire(pieces)))


class RecordReader:
    """Takes a stream of records apart, checks everything in it, and goes on behind damage.

    To be iterated once. A blob larger than 4 MiB comes as a payload that is read before the
    next item is asked for, or not at all; where it breaks off it raises `BadContent`, and the
    `Damage` follows. Raises what reading the pieces raises, nothing else.
    """

    def __init__(self, pieces: AsyncIterator[Piece]) -> None:
        self._pieces = pieces
        self._buffer: bytes = b""
        self._at = 0
        self._came = 0
        self.owner = b""
        """That of the records; empty before the first one."""
        self.records = 0
        """How many whole records were read."""
        self.end = 0
        """Where the last of them ends, in bytes from the start."""

    @property
    def passed(self) -> int:
        """Bytes taken so far."""
        return self._came - len(self._buffer) + self._at

    async def __aiter__(self) -> AsyncIterator[Blob | Failed | Mark | Damage]:
        while self._held or await self._have(1):
            begin = self.passed - self._at
            found = sound_records(self._buffer, self._at, self.owner, True)
            for fields, content, sums, end in found:
                self._at = end
                self.records += 1
                self.end = begin + end
                yield Blob(BlobInfo(*fields), Framed(content, sums))
            if not self._held:
                continue
            at, name, looked_at = self.passed, "", (self.owner, self._held)
            try:
                head = await self._head()
                name, item = head.name.decode("ascii", "replace"), item_of(head)
                if head.length <= WHOLE and isinstance(item, BlobInfo):
                    await self._complete(head, looked_at)
                    continue  # now that there is more of it
            except Corrupt as error:
                more = await self._search()
                yield self._beside(Damage(at, self.passed - at, str(error), name, not more))
                continue
            self._at += head.data_offset
            if not isinstance(item, BlobInfo):
                self._count()
                yield self._beside(item)
                continue
            rest = _Rest(self, head)
            yield Blob(item, Stream(head.length, rest.pieces, rereadable=False))
            if await rest.skip():
                self._count()
            else:
                cut = self.passed < at + head.size
                yield self._beside(Damage(at, self.passed - at, DAMAGED, name, cut))

    def _count(self) -> None:
        self.records += 1
        self.end = self.passed

    def _beside(self, item: Failed | Mark | Damage) -> Failed | Mark | Damage:
        """What comes of an item that is no blob."""
        return item

    # What is held of the stream

    @property
    def _held(self) -> int:
        return len(self._buffer) - self._at

    async def _have(self, wanted: int) -> bool:
        """Hold so many bytes that were not taken; False when the stream ends before."""
        held = self._held
        if held >= wanted:
            return True
        parts: list[Piece] = [memoryview(self._buffer)[self._at :]] if held else []
        while held < wanted:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._came += len(piece)
            held += len(piece)
            parts.append(piece)
        self._buffer = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        self._at = 0
        return held >= wanted

    async def take(self, length: int) -> bytes:
        """Take so many bytes; raises `BadContent` where the stream ends before."""
        if not await self._have(length):
            self._at = len(self._buffer)
            raise BadContent(f"the stream is cut off in record {self.records + 1}")
        at = self._at
        self._at = at + length
        return self._buffer[at : at + length]

    # Records. Nothing is taken of one that is damaged

    async def _head(self) -> Head:
        """The head of the record that comes next; raises `Corrupt`."""
        if await self._have(HEADER_SIZE):
            await self._have(head_size(self._buffer, self._at))
        head = decode_head(self._buffer, self._at)
        if head.owner != self.owner:
            if self.owner:
                raise Corrupt("this record belongs to another stream")
            self.owner = head.owner
        if head.length and head.kind not in TRAVELS:
            raise Corrupt(f"a record of kind {head.kind} has no data")
        return head

    async def _complete(self, head: Head, looked_at: tuple[bytes, int]) -> None:
        """Hold all of a record; raises `Corrupt` where that was looked at already."""
        if not await self._have(head.size):
            raise Corrupt("it ends inside a record")
        if looked_at == (self.owner, self._held):
            raise Corrupt(DAMAGED)

    async def _search(self) -> bool:
        """Pass over a damaged record, to the next head; False where there is none."""
        self._at += 1
        while await self._have(HEADER_SIZE):
            found = self._buffer.find(MAGIC, self._at)
            if found < 0:
                self._at = len(self._buffer) - len(MAGIC) + 1
                continue
            self._at = found
            try:
                item_of(await self._head())
            except Corrupt:
                self._at += 1
            else:
                return True
        self._at = len(self._buffer)
        return False


class _OnTheWire(RecordReader):
    """A stream in which damage and marks have no place."""

    def _beside(self, item: Failed | Mark | Damage) -> Failed:
        if isinstance(item, Mark):
            raise BadContent("a mark is only found in archives")
        if isinstance(item, Damage):
            what = "cut off in" if item.ends else "damaged at"
            where = f"record {self.records + 1} ({item.name})"
            raise BadContent(f"the stream is {what} {where}: {item.why}")
        return item


class _Rest:
    """The data of a large record, still in the stream."""

    def __init__(self, reader: RecordReader, head: Head) -> None:
        self._reader, self._head = reader, head
        self._left = head.length
        self._sound = False
        self._sums = BlockSums()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The data, and before the last of it the check of it all."""
        while self._left:
            piece = await self._reader.take(min(self._left, 4 * BLOCK))
            self._left -= len(piece)
            self._sums.update(piece)
            if not self._left:
                if await self._reader.take(sums_size(self._head.length)) != self._sums.digest():
                    raise BadContent(DAMAGED)
                self._sound = True
            yield piece

    async def skip(self) -> bool:
        """Pass over what its reader left; whether all of it is sound."""
        try:
            async for _ in self.pieces():
                pass
        except BadContent:
            pass
        return self._sound
