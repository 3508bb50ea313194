"""Streams of records: how blobs travel in bulk between stores, and lie in an archive.

A stream is records one after the other (`dolmen.record`), without anything in between. A blob
that can't be given is there as a record of kind REFUSED under its name; its metadata is the
error (`errors.to_text`) and its stamp that of the tombstone behind a `NotFound`, so every name
asked for gets its answer. A record of kind MARK says something about the stream: a word as its
name, JSON as its metadata. Neither has data.

All records of an archive carry one *owner*, 16 random bytes (zero on the wire), so that a
search for the next record behind a damaged one never takes one inside a blob (which may
be an archive itself) for it.

Read first: `dolmen.record`, `dolmen.payload`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from dolmen import errors, metadata
from dolmen.errors import BadContent, Corrupt, InvalidName
from dolmen.names import check_name, checksum_of
from dolmen.native import accelerated
from dolmen.payload import Bytes, Piece, Stream
from dolmen.record import (
    BLOCK,
    HEADER_SIZE,
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
from dolmen.store import NO_CHECKSUM, Blob, BlobInfo, Failed, Write

WHOLE = 4 << 20
"""Blobs up to this size are decoded whole; larger ones as a stream."""
GATHER = 262_144
"""Bytes that small records are gathered up to before they are sent."""
_TRAVELS = frozenset((Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE, Kind.TOUCH))
_DAMAGED = "its data fails its checksum"


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
        self.whole, self.size, self.sums = data, len(data), sums


def head_of(item: BlobInfo | Failed | Mark, owner: bytes = NOBODY) -> bytes:
    """The head of a record that says this."""
    if isinstance(item, BlobInfo):
        return encode_head(
            item.kind, item.name.encode(), item.metadata, item.size, item.stamp, item.checksum,
            arrived=item.arrived, owner=owner,
        )  # fmt: skip
    if isinstance(item, Mark):
        kind, name, stamp = Kind.MARK, item.word, 0
        text = json.dumps(item.facts).encode() if item.facts else b""
    else:
        kind, name, stamp = Kind.REFUSED, item.name, getattr(item.error, "stamp", 0)
        text = errors.to_text(item.error).encode()[: metadata.METADATA_MAX]
    named = name.encode("ascii", "replace")[:128]
    return encode_head(kind, named, text, 0, stamp, NO_CHECKSUM, owner=owner)


def item_of(head: Head) -> BlobInfo | Failed | Mark:
    """What a head says; raises `Corrupt` where that makes no sense."""
    name = head.name.decode("ascii", "replace")
    if head.kind == Kind.REFUSED:
        return Failed(name, errors.from_text(head.metadata.decode("utf-8", "replace"), head.stamp))
    if head.kind == Kind.MARK:
        return Mark(name, _facts(head.metadata))
    if head.kind not in _TRAVELS:
        raise Corrupt(f"a record of kind {head.kind} does not travel")
    try:
        check_name(name)
        metadata.check(head.metadata)
    except (InvalidName, errors.TooLarge) as error:
        raise Corrupt(str(error)) from error
    return BlobInfo(
        name, head.length, head.kind, head.stamp, head.checksum, head.metadata, head.arrived
    )


Found = tuple[tuple[str, int, int, int, bytes, bytes, int], bytes, bytes, int]
"""The fields of a `BlobInfo`, the data, their block checksums, and where the record ends."""


@accelerated
def sound_records(buffer: bytes, at: int, owner: bytes, data: bool) -> list[Found]:
    """The records that lie in a buffer from `at` on, up to the first that has to be looked at.

    That is one that is not whole, damaged, larger than 4 MiB, of another owner, or of no blob.
    Without `data` there are only heads, one behind the other.
    """
    found: list[Found] = []
    while True:
        try:
            head = decode_head(buffer, at)
            item = item_of(head)
        except Corrupt:
            return found
        start = stop = end = at + head.data_offset
        if data:
            stop, end = start + head.length, at + head.size
        content, sums = buffer[start:stop], buffer[stop:end]
        if not isinstance(item, BlobInfo) or head.owner != owner or end > len(buffer):
            return found
        if data and (head.length > WHOLE or not blocks_match(content, sums)):
            return found
        info = item.name, item.size, item.kind, item.stamp, item.checksum, item.metadata
        found.append(((*info, item.arrived), content, sums, end))
        at = end


def _facts(encoded: bytes) -> Mapping[str, object]:
    """The JSON object of a mark; empty where it is none (only what it says is lost)."""
    try:
        facts = json.loads(encoded)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def frame(item: Blob | Write, owner: bytes = NOBODY) -> Sequence[Piece]:
    """The record of a blob, or of a stamped write, whose data is in memory; in parts."""
    payload, data = item.payload, item.payload.whole
    assert data is not None
    sums = payload.sums if isinstance(payload, Framed) else block_sums(data)
    if isinstance(item, Blob):
        return head_of(item.info, owner), data, sums
    checksum = item.checksum
    if checksum is None:
        checksum = NO_CHECKSUM if item.kind == Kind.TOMBSTONE else checksum_of(data)
    fixed = item.kind, item.name.encode(), item.metadata, len(data), item.stamp or 0, checksum
    return encode_head(*fixed, owner=owner), data, sums


async def encode(
    items: AsyncIterator[Blob | Failed | Mark], owner: bytes = NOBODY
) -> AsyncIterator[Piece]:
    """The stream of these, in pieces of about 256 KiB, and up to each mark.

    Raises what reading a payload raises; the stream is then cut off inside a record.
    """
    gathered: list[Piece] = []
    size = 0
    async for item in items:
        if not isinstance(item, Blob):
            gathered.append(head_of(item, owner))
            size = GATHER if isinstance(item, Mark) else size + len(gathered[-1])
        elif item.payload.whole is not None:
            parts = frame(item, owner)
            gathered += parts
            size += sum(map(len, parts))
        else:
            yield b"".join([*gathered, head_of(item.info, owner)])
            gathered, size = [], 0
            sums = BlockSums()
            async for piece in item.payload:
                sums.update(piece)
                yield piece
            yield sums.digest()
        if size >= GATHER:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def encode_whole(items: Iterable[Blob | Failed]) -> bytes:
    """`encode` for blobs that are in memory."""
    parts: list[Piece] = []
    for item in items:
        parts += frame(item) if isinstance(item, Blob) else (head_of(item),)
    return b"".join(parts)


def decode(pieces: AsyncIterator[Piece]) -> AsyncIterator[Blob | Failed]:
    """The blobs of a stream on the wire, each checked against its block checksums.

    A blob larger than 4 MiB comes as a payload that must be read to its end before the next
    one is asked for. Raises `BadContent` for a stream that is cut off or damaged, naming the
    record (counted from 1).
    """
    return cast("AsyncIterator[Blob | Failed]", aiter(_OnTheWire(pieces)))


def decode_whole(data: bytes) -> Iterator[Blob | Failed]:
    """`decode` for a stream that is in memory, of blobs of up to 4 MiB."""
    at = count = 0
    while at < len(data):
        found = sound_records(data, at, NOBODY, True)
        for fields, content, sums, at in found:  # noqa: B007
            yield Blob(BlobInfo(*fields), Framed(content, sums))
        count += len(found)
        if at == len(data):
            return
        try:
            head = decode_head(data, at)
            item = item_of(head)
        except Corrupt as error:
            raise BadContent(f"the stream is damaged at record {count + 1}: {error}") from error
        if not isinstance(item, Failed) or head.length:
            raise BadContent(f"the stream is damaged at record {count + 1}: {_DAMAGED}")
        yield item
        at += head.size
        count += 1


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
                yield self._beside(Damage(at, self.passed - at, _DAMAGED, name, cut))

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
        if head.length and head.kind not in _TRAVELS:
            raise Corrupt(f"a record of kind {head.kind} has no data")
        return head

    async def _complete(self, head: Head, looked_at: tuple[bytes, int]) -> None:
        """Hold all of a record; raises `Corrupt` where that was looked at already."""
        if not await self._have(head.size):
            raise Corrupt("it ends inside a record")
        if looked_at == (self.owner, self._held):
            raise Corrupt(_DAMAGED)

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
