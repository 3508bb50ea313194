"""What dolmen servers say to each other about many blobs: entries and answers.

Both forms are binary and little-endian, written and read here for both sides; `docs/wire-api.md`
says which request uses which.

An **entry** says what is known of a blob without its bytes: the head of its record
(`dolmen.record`), whose length is the blob's size, with nothing behind it. An entry of kind
REFUSED is a name that failed; its metadata is the error (`errors.to_text`), its stamp that of the
tombstone behind a `NotFound`. The last entry is of kind MARK: its name is where the next page
begins, or empty at the end. A stream without it was cut.

An **answer** to a write is 9 bytes: a byte for the outcome (0 created, 1 unchanged, 2 superseded)
and the stamp that is now current; or, for a write that failed, a byte 255, the stamp as above, 4
bytes with the length of the error and the error.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator

from dolmen import metadata
from dolmen.errors import Corrupt, DolmenError, InvalidName, TooLarge, from_text, to_text
from dolmen.metadata import METADATA_MAX
from dolmen.names import check_name
from dolmen.payload import Piece
from dolmen.record import HEADER_SIZE, Kind, decode_head, encode_head, head_size
from dolmen.store import NO_CHECKSUM, BlobInfo, Failed, Outcome, Put

_ANSWER = struct.Struct("<BQ")
_LENGTH = struct.Struct("<I")
_OUTCOMES = [Outcome.CREATED, Outcome.UNCHANGED, Outcome.SUPERSEDED]
_CODES = {outcome: code for code, outcome in enumerate(_OUTCOMES)}
_FAILED = 255
_GATHER = 262_144
_LISTED = frozenset((Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE))


async def encode_entries(
    items: AsyncIterator[BlobInfo | Failed], limit: int | None = None, *, together: int = _GATHER
) -> AsyncIterator[bytes]:
    """The entries of these, at most `limit`, in pieces of about `together` bytes."""
    gathered = bytearray()
    last, left = "", limit
    async for item in items:
        if left == 0:
            gathered += _mark(last)
            break
        gathered += _entry(item)
        last = item.name
        if left is not None:
            left -= 1
        if len(gathered) >= together:
            yield bytes(gathered)
            gathered = bytearray()
    else:
        gathered += _mark("")
    yield bytes(gathered)


def _entry(item: BlobInfo | Failed) -> bytes:
    if isinstance(item, BlobInfo):
        name = item.name.encode()
        return encode_head(
            item.kind, name, item.metadata, item.size, item.stamp, item.checksum,
            arrived=item.arrived,
        )  # fmt: skip
    name = item.name.encode("ascii", "replace")[:128]
    text = to_text(item.error).encode()[:METADATA_MAX]
    stamp = getattr(item.error, "stamp", 0)
    return encode_head(Kind.REFUSED, name, text, 0, stamp, NO_CHECKSUM)


def _mark(following: str) -> bytes:
    return encode_head(Kind.MARK, following.encode(), b"", 0, 0, NO_CHECKSUM)


class EntryReader:
    """Reads entries that come in pieces; `next_page` is known when all of them were read.

    Iterating raises `Corrupt` for what is not a stream of entries, and for one that was cut.
    """

    def __init__(self, pieces: AsyncIterator[Piece]) -> None:
        self._pieces = pieces
        self._ended = False
        self.next_page: str | None = None
        """The name behind which the next page begins; None where there is no more."""

    async def __aiter__(self) -> AsyncIterator[BlobInfo | Failed]:
        rest = b""
        async for piece in self._pieces:
            buffer = rest + bytes(piece) if rest else bytes(piece)
            at = 0
            for end, item in self._entries(buffer):
                at = end
                if item is not None:
                    yield item
            rest = buffer[at:]
        if rest or not self._ended:
            raise Corrupt("the answer breaks off before its end")

    def _entries(self, buffer: bytes) -> Iterator[tuple[int, BlobInfo | Failed | None]]:
        at = 0
        while len(buffer) - at >= HEADER_SIZE:
            stop = at + head_size(buffer, at)
            if stop > len(buffer):
                return
            if self._ended:
                raise Corrupt("something follows the end of the answer")
            head = decode_head(buffer, at)
            at = stop
            name = head.name.decode("ascii", "replace")
            if head.kind == Kind.MARK:
                self._ended, self.next_page = True, name or None
                yield at, None
            elif head.kind == Kind.REFUSED:
                error = from_text(head.metadata.decode("utf-8", "replace"), head.stamp)
                yield at, Failed(name, error)
            elif head.kind in _LISTED:
                info = BlobInfo(
                    _checked(name, head.metadata),
                    head.length, head.kind, head.stamp, head.checksum, head.metadata, head.arrived,
                )  # fmt: skip
                yield at, info
            else:
                raise Corrupt(f"an entry of kind {head.kind}")


def _checked(name: str, encoded: bytes) -> str:
    try:
        metadata.check(encoded)
        return check_name(name)
    except (InvalidName, TooLarge) as error:
        raise Corrupt(str(error)) from error


def encode_answer(answer: Put | Failed) -> bytes:
    """The answer to one write."""
    if isinstance(answer, Put):
        return _ANSWER.pack(_CODES[answer.outcome], answer.stamp)
    text = to_text(answer.error).encode()
    head = _ANSWER.pack(_FAILED, getattr(answer.error, "stamp", 0))
    return head + _LENGTH.pack(len(text)) + text


def decode_answers(encoded: bytes) -> Iterator[Put | DolmenError]:
    """The answers to writes, in their order; raises `Corrupt` behind the last whole one."""
    at = 0
    while at < len(encoded):
        try:
            code, stamp = _ANSWER.unpack_from(encoded, at)
            at += _ANSWER.size
            if code != _FAILED:
                yield Put(_OUTCOMES[code], stamp)
                continue
            (length,) = _LENGTH.unpack_from(encoded, at)
        except (struct.error, IndexError) as error:
            raise Corrupt("the answer to a write breaks off, or is none") from error
        at += _LENGTH.size + length
        if at > len(encoded):
            raise Corrupt("the answer to a write breaks off")
        yield from_text(encoded[at - length : at].decode("utf-8", "replace"), stamp)
