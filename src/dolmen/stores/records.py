"""Streams of records: how blobs travel in bulk between stores, and lie in an export.

A stream is records one after the other (`dolmen.record`; owner, sequence and
flushed are zero), without anything in between. What can't be read is there as a
record of kind REFUSED under its name, whose data says why (UTF-8: the error's
class, a line feed, its message), so every name asked for gets its answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from dolmen import errors, metadata
from dolmen.errors import BadContent, Corrupt, DolmenError, InvalidName
from dolmen.names import check_name, checksum_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.record import (
    BLOCK,
    HEADER_SIZE,
    LENGTH,
    LENGTH_AT,
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

WHOLE = 4 << 20
"""Blobs up to this size are decoded whole; larger ones as a stream."""
_GATHER = 262_144
_TRAVELS = frozenset((Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE))


async def encode(blobs: AsyncIterator[Blob | Failed]) -> AsyncIterator[Piece]:
    """The stream of these blobs, in pieces of about 256 KiB.

    Raises what reading a payload raises; the stream is then cut off inside a record.
    """
    gathered: list[Piece] = []
    size = 0
    async for blob in blobs:
        if isinstance(blob, Failed):
            parts = frame(refusal(blob))
        elif blob.payload.whole is not None:
            parts = frame(blob)
        else:
            yield b"".join([*gathered, _head_of(blob.info, blob.payload.size)])
            gathered, size = [], 0
            sums = BlockSums()
            async for piece in blob.payload:
                sums.update(piece)
                yield piece
            yield sums.digest()
            continue
        gathered += parts
        size += sum(map(len, parts))
        if size >= _GATHER:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


class Framed(Bytes):
    """Data in memory with the block checksums that follow it in a record.

    `head` is what stood before it on the wire, so that who passes a blob on need not make
    a record of it again. All has been checked, and goes with the `BlobInfo` it came with.
    """

    __slots__ = ("head", "sums")

    def __init__(self, data: bytes | memoryview, sums: bytes, head: bytes = b"") -> None:
        super().__init__(data)
        self.sums, self.head = sums, head


def frame(blob: Blob) -> Sequence[Piece]:
    """The record of a blob whose data is in memory, in parts."""
    payload, data = blob.payload, blob.payload.whole
    assert data is not None
    if isinstance(payload, Framed):
        return payload.head or _head_of(blob.info, len(data)), data, payload.sums
    return _head_of(blob.info, len(data)), data, block_sums(data)


def _head_of(info: BlobInfo, size: int) -> bytes:
    return encode_head(
        info.kind, info.name.encode(), info.metadata, size, info.stamp, info.checksum
    )


def refusal(failed: Failed) -> Blob:
    """What can't be given, as the record that says so."""
    error = failed.error
    data = f"{type(error).__name__}\n{error}".encode()
    stamp = getattr(error, "stamp", 0)
    info = BlobInfo(failed.name, len(data), Kind.REFUSED, stamp, checksum_of(data))
    return Blob(info, Bytes(data))


async def decode(pieces: AsyncIterator[Piece]) -> AsyncIterator[Blob | Failed]:
    """The blobs of a stream, each checked against its block checksums and its checksum.

    A blob larger than 4 MiB comes as a payload that must be read to its end before
    the next blob is asked for. Raises `BadContent` for a stream that is cut off or
    damaged, naming the record (counted from 1).
    """
    source = _Source(pieces)
    while await source.fill():
        for answer in source.whole_ones():
            yield answer
        if (large := source.large()) is not None:
            head, info = large
            rest = Rest(source, head)
            yield Blob(info, Stream(head.length, rest.pieces, rereadable=False))
            await rest.skip()
    source.check_end()


def info_of(head: Head) -> BlobInfo:
    """What a record says of its blob; raises `Corrupt` or `InvalidName` for one that is none."""
    name = check_name(head.name.decode("ascii", "replace"))
    if head.kind not in _TRAVELS:
        raise Corrupt(f"a record of kind {head.kind} does not travel")
    metadata.check(head.metadata)
    return BlobInfo(name, head.length, head.kind, head.stamp, head.checksum, head.metadata)


def refused(head: Head, data: bytes) -> Failed:
    """What a record of kind REFUSED tells; an error not known here becomes `Unavailable`."""
    word, _, message = data.decode("utf-8", "replace").partition("\n")
    known = getattr(errors, word, None)
    if known is errors.NotFound:
        error: DolmenError = errors.NotFound(message, stamp=head.stamp)
    elif isinstance(known, type) and issubclass(known, DolmenError):
        error = known(message)
    else:
        error = errors.Unavailable(message)
    return Failed(head.name.decode("ascii", "replace"), error)


class _Source(Gathered):
    """The pieces of a stream, taken apart into records."""

    def __init__(self, pieces: AsyncIterator[Piece]) -> None:
        super().__init__(pieces)
        self._needed = HEADER_SIZE
        self._count = 0

    async def fill(self) -> bool:
        """Hold what is needed of the next record; False when the stream ends before."""
        return await self.have(self._needed)

    def whole_ones(self) -> Iterator[Blob | Failed]:
        """Take the records that are all here. `fill` then gets more of the one after them."""
        buffer, at = self._buffer, self._at
        while len(buffer) - at >= HEADER_SIZE:
            start = at + head_size(buffer, at)
            (length,) = LENGTH.unpack_from(buffer, at + LENGTH_AT)
            stop = start + length
            end = stop + sums_size(length) if length <= WHOLE else start
            if end > len(buffer) or length > WHOLE:
                self._needed = end - at
                return
            head, info = self._head(at)
            data, sums = buffer[start:stop], buffer[stop:end]
            if not blocks_match(data, sums):
                raise self._damaged("its data fails its checksum")
            before = buffer[at:start]
            self._at = at = end
            self._count += 1
            yield refused(head, data) if info is None else Blob(info, Framed(data, sums, before))
        self._needed = HEADER_SIZE

    def large(self) -> tuple[Head, BlobInfo] | None:
        """Take the head of the record that comes next if it is one to be streamed."""
        if self.held < self._needed:
            return None
        head, info = self._head(self._at)
        if info is None:
            raise self._damaged("a refusal of that length")
        self._at += head.data_offset
        self._needed = HEADER_SIZE
        self._count += 1
        return head, info

    def _head(self, at: int) -> tuple[Head, BlobInfo | None]:
        try:
            head = decode_head(self._buffer, at)
            return head, None if head.kind == Kind.REFUSED else info_of(head)
        except (Corrupt, InvalidName) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> BadContent:
        return BadContent(f"record {self._count + 1} of the stream is damaged: {why}")

    def check_end(self) -> None:
        """Raise `BadContent` unless the stream ended with a record."""
        if self.held:
            self._head(self._at)
            raise BadContent(f"the stream is cut off in record {self._count + 1}")


class Rest:
    """The data of a large record, still in the stream."""

    def __init__(self, source: Gathered, head: Head) -> None:
        self._source, self._head = source, head
        self.left = head.length
        """Bytes of it that were not read yet."""
        self.sound = False
        """All of it was read and is right."""
        self._sums = BlockSums()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The data, and at its end the check of all of it."""
        while self.left:
            piece = await self._take(min(self.left, 4 * BLOCK))
            self.left -= len(piece)
            self._sums.update(piece)
            if not self.left:
                await self._check()
            yield piece

    async def _take(self, length: int) -> bytes:
        if not await self._source.have(length):
            raise BadContent("the stream is cut off in a large record")
        return self._source.take(length)

    async def _check(self) -> None:
        if await self._take(sums_size(self._head.length)) != self._sums.digest():
            raise BadContent("a record of the stream is damaged: its data fails its checksum")
        self.sound = True

    async def skip(self) -> None:
        """Pass over what its reader left."""
        async for _ in self.pieces():
            pass
