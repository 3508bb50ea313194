"""Streams of records: how blobs travel in bulk between stores, and lie in an archive.

A stream is records one after the other (`dolmen.record`), without anything in between. What
can't be read is there as a record of kind REFUSED under its name, whose data says why (UTF-8:
the error's class, a line feed, its message), so every name asked for gets its answer. A
record of kind MARK says something about the stream: a word as its name, JSON as its data.

All records of an archive carry one *owner*, 16 random bytes (zero on the wire), so that a
search for the next record behind a damaged one never takes one inside a blob (which may
be an archive itself) for it.

Read first: `dolmen.record`, `dolmen.payload`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple

from dolmen import errors, metadata
from dolmen.errors import BadContent, Corrupt, InvalidName
from dolmen.names import check_name, checksum_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.record import (
    BLOCK,
    HEADER_SIZE,
    LENGTH,
    LENGTH_AT,
    MAGIC,
    NOBODY,
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

WHOLE = 4 << 20
"""Blobs up to this size are decoded whole; larger ones as a stream."""
_GATHER = 262_144
_TRAVELS = frozenset((Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE, Kind.TOUCH))


class Mark(NamedTuple):
    """A word about the stream, with what it says."""

    word: str
    facts: Mapping[str, object]


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


class Framed(Bytes):
    """Data in memory with the block checksums that follow it in a record, both checked."""

    __slots__ = ("sums",)

    def __init__(self, data: bytes | memoryview, sums: bytes) -> None:
        super().__init__(data)
        self.sums = sums


def frame(blob: Blob, owner: bytes = NOBODY) -> Sequence[Piece]:
    """The record of a blob whose data is in memory, in parts."""
    payload, data = blob.payload, blob.payload.whole
    assert data is not None
    sums = payload.sums if isinstance(payload, Framed) else block_sums(data)
    return _head_of(blob.info, len(data), owner), data, sums


def _head_of(info: BlobInfo, size: int, owner: bytes) -> bytes:
    name = info.name.encode()
    return encode_head(info.kind, name, info.metadata, size, info.stamp, info.checksum, owner=owner)


def refusal(failed: Failed) -> Blob:
    """What can't be given, as the record that says so."""
    error = failed.error
    data = errors.to_text(error).encode()
    return _special(failed.name, Kind.REFUSED, data, stamp=getattr(error, "stamp", 0))


def _special(name: str, kind: Kind, data: bytes, stamp: int = 0) -> Blob:
    return Blob(BlobInfo(name, len(data), kind, stamp, checksum_of(data)), Bytes(data))


async def encode(
    items: AsyncIterator[Blob | Failed | Mark], owner: bytes = NOBODY
) -> AsyncIterator[Piece]:
    """The stream of these, in pieces of about 256 KiB, and up to each mark.

    Raises what reading a payload raises; the stream is then cut off inside a record.
    """
    gathered: list[Piece] = []
    size = 0
    async for item in items:
        if isinstance(item, Blob):
            blob = item
        elif isinstance(item, Failed):
            blob = refusal(item)
        else:
            blob = _special(item.word, Kind.MARK, json.dumps(item.facts).encode())
        if blob.payload.whole is None:
            yield b"".join([*gathered, _head_of(blob.info, blob.payload.size, owner)])
            gathered, size = [], 0
            sums = BlockSums()
            async for piece in blob.payload:
                sums.update(piece)
                yield piece
            yield sums.digest()
            continue
        parts = frame(blob, owner)
        gathered += parts
        size += sum(map(len, parts))
        if size >= _GATHER or isinstance(item, Mark):
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


async def decode(pieces: AsyncIterator[Piece]) -> AsyncIterator[Blob | Failed]:
    """The blobs of a stream on the wire, each checked against its block checksums.

    A blob larger than 4 MiB comes as a payload that must be read to its end before the next
    one is asked for. Raises `BadContent` for a stream that is cut off or damaged, naming the
    record (counted from 1).
    """
    reader = RecordReader(pieces)
    async for item in reader:
        if isinstance(item, Damage):
            what = "cut off in" if item.ends else "damaged at"
            raise BadContent(
                f"the stream is {what} record {reader.records + 1} ({item.name}): {item.why}"
            )
        if isinstance(item, Mark):
            raise BadContent("a mark is only found in archives")
        yield item


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
        self._needed = 1
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
        while await self._have(1):
            at, why = self.passed, ""
            try:
                for item in self._whole_ones():
                    yield item
                at = self.passed
                if not await self._have(self._needed) and self._buffer[self._at :]:
                    decode_head(self._buffer, self._at)
                    why = "it ends inside a record"
                elif (head := self._large()) is not None:
                    rest, info = _Rest(self, head), _info_of(head)
                    yield Blob(info, Stream(head.length, rest.pieces, rereadable=False))
                    if not await rest.skip():
                        ends = self.passed < at + head.size
                        yield Damage(at, self.passed - at, _DAMAGED, info.name, ends)
                    else:
                        self._count()
                    continue
            except Corrupt as error:
                at, why = self.passed, str(error)
            if why:
                name = self._name()
                more = await self._search()
                yield Damage(at, self.passed - at, why, name, not more)

    # What is held of the stream

    async def _have(self, wanted: int) -> bool:
        """Hold so many bytes that were not taken; False when the stream ends before."""
        held = len(self._buffer) - self._at
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

    # Records

    def _whole_ones(self) -> Iterator[Blob | Failed | Mark]:
        """Take the records that are all here, and note what is needed of the one behind them.

        Raises `Corrupt` with nothing taken of a record that is damaged.
        """
        buffer, at = self._buffer, self._at
        while len(buffer) - at >= HEADER_SIZE:
            start = at + head_size(buffer, at)
            (length,) = LENGTH.unpack_from(buffer, at + LENGTH_AT)
            if start > len(buffer):
                self._needed = start - at
                return
            head = self._head(at)
            if length > WHOLE:
                self._needed = start - at
                return
            stop = start + length
            end = stop + sums_size(length)
            if end > len(buffer):
                self._needed = end - at
                return
            item = _item_of(head, buffer[start:stop], buffer[stop:end])
            self._at = at = end
            self._count()
            yield item
        self._needed = HEADER_SIZE

    def _large(self) -> Head | None:
        """Take the head of the record that comes next if it is one to be streamed."""
        if len(self._buffer) - self._at < HEADER_SIZE:
            return None
        (length,) = LENGTH.unpack_from(self._buffer, self._at + LENGTH_AT)
        if length <= WHOLE:
            return None
        head = self._head(self._at)
        _info_of(head)
        self._at += head.data_offset
        return head

    def _head(self, at: int) -> Head:
        head = decode_head(self._buffer, at)
        if head.owner != self.owner:
            if self.owner:
                raise Corrupt("this record belongs to another stream")
            self.owner = head.owner
        if head.length > WHOLE and head.kind not in _TRAVELS:
            raise Corrupt("a record of that kind is never so long")
        return head

    def _count(self) -> None:
        self.records += 1
        self.end = self.passed

    def _name(self) -> str:
        """The name in a record that is damaged, if its head is not."""
        try:
            return decode_head(self._buffer, self._at).name.decode("ascii", "replace")
        except Corrupt:
            return ""

    async def _search(self) -> bool:
        """Pass over a damaged record, to the next head; False where there is none."""
        self._at += 1
        while await self._have(HEADER_SIZE):
            found = self._buffer.find(MAGIC, self._at)
            if found < 0:
                self._at = len(self._buffer) - len(MAGIC) + 1
                continue
            self._at = found
            if await self._have(HEADER_SIZE):
                await self._have(head_size(self._buffer, self._at))
            try:
                head = self._head(self._at)
                if head.kind not in (Kind.MARK, Kind.REFUSED):
                    _info_of(head)
            except Corrupt:
                self._at += 1
            else:
                return True
        self._at = len(self._buffer)
        return False


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
                    raise BadContent(_DAMAGED)
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


_DAMAGED = "its data fails its checksum"


def _item_of(head: Head, data: bytes, sums: bytes) -> Blob | Failed | Mark:
    """What a record in memory says; raises `Corrupt` where it is damaged."""
    if not blocks_match(data, sums):
        raise Corrupt(_DAMAGED)
    if head.kind == Kind.REFUSED:
        return _refused(head, data)
    if head.kind == Kind.MARK:
        return Mark(head.name.decode("ascii", "replace"), _facts(data))
    return Blob(_info_of(head), Framed(data, sums))


def _info_of(head: Head) -> BlobInfo:
    """What a record says of its blob; raises `Corrupt` for one that is none."""
    if head.kind not in _TRAVELS:
        raise Corrupt(f"a record of kind {head.kind} does not travel")
    try:
        name = check_name(head.name.decode("ascii", "replace"))
        metadata.check(head.metadata)
    except (InvalidName, errors.TooLarge) as error:
        raise Corrupt(str(error)) from error
    return BlobInfo(name, head.length, head.kind, head.stamp, head.checksum, head.metadata)


def _refused(head: Head, data: bytes) -> Failed:
    error = errors.from_text(data.decode("utf-8", "replace"), head.stamp)
    return Failed(head.name.decode("ascii", "replace"), error)


def _facts(data: bytes) -> Mapping[str, object]:
    """The JSON object of a mark; empty where it is none (only what it says is lost)."""
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
