"""Archives in memory, for tests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence

from dolmen.cluster.groups import Group, Member, make_group
from dolmen.errors import BadContent
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Piece
from dolmen.record import Kind
from dolmen.replication.archive import Reader, Writer
from dolmen.replication.export import export
from dolmen.replication.report import Report
from dolmen.store import Blob, BlobInfo, BlobStore

OWNER = bytes(range(16))


def blob(number: int, size: int, kind: int = Kind.BLOB, meta: bytes = b"") -> Blob:
    """A blob of random bytes, always the same for a number."""
    data = random.Random(number).randbytes(size)
    return Blob(
        BlobInfo(f"name-{number}", size, kind, number + 1, checksum_of(data), meta), Bytes(data)
    )


async def written(*items: object, owner: bytes = OWNER) -> bytes:
    """An archive of these blobs, failures and marks (pairs of a word and facts)."""
    parts: list[bytes] = []
    writer = Writer(sink_into(parts), owner=owner)
    for item in items:
        if isinstance(item, tuple):
            await writer.mark(*item)
        else:
            await writer.add(item)
    await writer.flush()
    return b"".join(parts)


def sink_into(parts: list[bytes]):
    """A sink that keeps what it gets."""

    async def sink(pieces: Sequence[Piece]) -> None:
        parts.extend(map(bytes, pieces))

    return sink


async def pieces(data: bytes, step: int = 50_000) -> AsyncIterator[bytes]:
    """These bytes, some at a time."""
    for at in range(0, len(data), step):
        yield data[at : at + step]


async def read(data: bytes, step: int = 50_000) -> tuple[list[object], Reader]:
    """Everything in an archive, large blobs read whole; what breaks off is left out."""
    reader = Reader(pieces(data, step))
    items: list[object] = []
    async for item in reader:
        if isinstance(item, Blob) and item.payload.whole is None:
            try:
                body = b"".join([bytes(piece) async for piece in item.payload])
            except BadContent:
                continue
            item = Blob(item.info, Bytes(body))
        items.append(item)
    return items, reader


def group_of(*stores: BlobStore, copies: int | None = None) -> list[Group]:
    """A group of these stores, named a, b, c…"""
    members = [Member("abcdefgh"[at], store) for at, store in enumerate(stores)]
    return [make_group("all", members, copies=copies, volatile=True)]


async def exported(*stores: BlobStore, **how: object) -> tuple[bytes, Report]:
    """An archive of everything these stores hold."""
    parts: list[bytes] = []
    report = await export(group_of(*stores), sink_into(parts), source="here", **how)
    return b"".join(parts), report
