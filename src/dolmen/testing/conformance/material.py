"""What the suite is made of: stamps, bytes, payloads, writes, names, and short ways to look."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from dolmen import metadata
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import NotFound, Unavailable
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Payload, Piece, Stream
from dolmen.record import Kind
from dolmen.store import NO_CHECKSUM, BlobInfo, BlobStore, Write
from dolmen.testing import calls

T = TypeVar("T")
META = metadata.encode([(b"content-type", b"text/plain"), (b"x-note", b"\x00\xff")])
OTHER_META = metadata.encode([(b"content-type", b"image/png")])
MIB = 1 << 20


def at(milliseconds: int) -> int:
    """A stamp so many milliseconds after a moment long past."""
    return (1_700_000_000_000 + milliseconds) << 16


@cache
def noise(size: int, seed: int = 0) -> bytes:
    """So many bytes, always the same."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - nothing secret


def streamed(
    data: bytes, pieces: Sequence[int] = (1, 4095, 65_537, 7), *, once: bool = True
) -> Stream:
    """A payload that comes in pieces of these lengths, over and over; readable once."""

    async def opened() -> AsyncIterator[Piece]:
        position, turn = 0, 0
        while position < len(data):
            length = pieces[turn % len(pieces)]
            yield memoryview(data)[position : position + length]
            position, turn = position + length, turn + 1

    return Stream(len(data), opened, rereadable=not once)


def with_stream(write: Write) -> Write:
    """The write, its payload streamed where it has one."""
    if write.kind not in (Kind.BLOB, Kind.MANIFEST):
        return write
    return replace(write, payload=streamed(bytes(write.payload.whole or b"")))


def failing(data: bytes, size: int) -> Stream:
    """A payload of this size that gives `data` and then can't be read on."""

    async def opened() -> AsyncIterator[Piece]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]
        raise Unavailable("the payload's source went away")

    return Stream(size, opened)


async def each(items: Iterable[T]) -> AsyncIterator[T]:
    """These items, as a stream."""
    for item in items:
        yield item


async def read(payload: Payload) -> bytes:
    """Every byte of a payload, by way of its pieces."""
    return b"".join([bytes(piece) async for piece in payload])


async def content(store: BlobStore, name: str) -> bytes:
    """The bytes under a name."""
    return await read((await store.get(name)).payload)


async def found(store: BlobStore, name: str) -> BlobInfo | None:
    """What is current under a name, a tombstone too; None for nothing."""
    try:
        return await calls.current(store, name)
    except NotFound:
        return None


async def names(listing: AsyncIterator[BlobInfo]) -> list[str]:
    """The names of a listing."""
    return [info.name async for info in listing]


def info_of(
    name: str, data: bytes, *, stamp: int, kind: int = Kind.BLOB, meta: bytes = b""
) -> BlobInfo:
    """What describes a blob of these bytes."""
    checksum = NO_CHECKSUM if kind == Kind.TOMBSTONE else checksum_of(data)
    return BlobInfo(name, len(data), kind, stamp, checksum, meta)


def left_by(write: Write, *, stamp: int | None = None) -> BlobInfo:
    """What is current after a write that was carried out, of a payload in memory."""
    stamp = write.stamp if stamp is None else stamp
    assert stamp is not None
    assert write.payload.whole is not None
    data = bytes(write.payload.whole)
    return info_of(write.name, data, stamp=stamp, kind=write.kind, meta=write.metadata)


def same(found: BlobInfo | None, wanted: BlobInfo) -> bool:
    """Whether two infos agree in all but the time of arrival."""
    return found is not None and (
        (found.name, found.size, *found.rank, found.metadata)
        == (wanted.name, wanted.size, *wanted.rank, wanted.metadata)
    )


async def recomputed(store: BlobStore) -> Digests:
    """The digests, worked out from a listing of everything."""
    slots: defaultdict[int, Slot] = defaultdict(Slot)
    async for info in calls.listing(store, tombstones=True):
        entry = entry_hash(info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata)
        slots[partition_of(info.name)].add(info.size, entry)
    return Digests(dict(slots))


@cache
def crowd() -> list[str]:
    """Some hundred names in list order, most alone in their partition, some crowded."""
    letters = "azAZ09._-"
    rng = random.Random(1)  # noqa: S311 - nothing secret
    found: defaultdict[int, list[str]] = defaultdict(list)
    for number in range(20_000):
        name = f"n{number}{letters[number % 9]}{rng.choice(letters)}"
        found[partition_of(name)].append(name)
    fullest = sorted(found, key=lambda partition: -len(found[partition]))
    chosen = [name for partition in fullest[:8] for name in found[partition]]
    chosen += [found[partition][0] for partition in sorted(found)[::150]]
    return sorted(set(chosen), key=lambda name: (partition_of(name), name.encode()))
