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
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from dolmen import errors, metadata
from dolmen.errors import Corrupt, InvalidName
from dolmen.names import check_name, checksum_of
from dolmen.native import accelerated
from dolmen.payload import Bytes, Piece
from dolmen.record import (
    NOBODY,
    BlockSums,
    Head,
    Kind,
    block_sums,
    blocks_match,
    decode_head,
    encode_head,
)
from dolmen.store import NO_CHECKSUM, Blob, BlobInfo, Failed, Write

WHOLE = 4 << 20
"""Blobs up to this size are decoded whole; larger ones as a stream."""
GATHER = 262_144
"""Bytes that small records are gathered up to before they are sent."""
TRAVELS = frozenset((Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE, Kind.TOUCH))
DAMAGED = "its data fails its checksum"


class Mark(NamedTuple):
    """A word about the stream, with what it says."""

    word: str
    facts: Mapping[str, object]


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
    if head.kind not in TRAVELS:
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
