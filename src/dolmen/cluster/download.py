"""Downloading a large object: its chunks in order, each checked before a byte goes out.

A download holds one chunk, and its manifest, in memory while they are sent. Those fetched
ahead are on loan from the budget: they are dropped as soon as somebody else waits for
memory, and fetched again later. So slow readers, however many, hold one chunk each.

Read first: `dolmen.cluster.manifest`, `dolmen.cluster.read`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from dolmen.cluster.budget import Budget
from dolmen.cluster.fan_out import heard
from dolmen.cluster.manifest import CHUNK, Manifest, decode
from dolmen.cluster.read import Reader, halves
from dolmen.cluster.verify import digest_checked
from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.payload import Payload, Piece, Stream
from dolmen.store import BlobInfo, Range

AHEAD = 2
"""Chunks fetched before the one being sent has gone."""


def object_payload(
    reader: Reader,
    budget: Budget,
    info: BlobInfo,
    size: int,
    byte_range: Range | None,
    manifest: Manifest | None,
) -> Payload:
    """The bytes of an object of `size` bytes, or of a range of it, fetched as they are read.

    `info` is that of its manifest, which is read again where it is not given. Only the
    chunks that are touched are fetched. Reading raises `Corrupt` or `Unavailable` when a
    chunk can't be had, or all of them together are not the object; a short object is
    never taken for whole.
    """
    start, stop = byte_range or (0, size)
    stop = min(stop, size)
    start = min(start, stop)

    async def pieces() -> AsyncIterator[Piece]:
        held = min(CHUNK + info.size, budget.size)
        await budget.take(held)  # all at once: nobody holds some of it and waits for more
        ahead: dict[int, asyncio.Task[Piece]] = {}
        this = object()

        def begin(number: int) -> asyncio.Task[Piece]:
            task = asyncio.create_task(_chunk(reader, chunks, number))
            task.add_done_callback(heard)  # one fetched ahead may be dropped
            return task

        def drop(number: int) -> None:
            ahead.pop(number).cancel()

        try:
            chunks = manifest or decode(await reader.whole(info.name))
            if chunks.size != size:
                raise Unavailable(f"{info.name} was written anew while it was read; try again")
            last = (stop - 1) // CHUNK
            for number in range(start // CHUNK, last + 1):
                task = ahead.pop(number, None) or begin(number)
                budget.settle((this, number))  # what is sent now has its place in what is held
                for following in range(number + 1, min(number + AHEAD, last) + 1):
                    if following not in ahead and budget.lend(
                        (this, following), CHUNK, partial(drop, following)
                    ):
                        ahead[following] = begin(following)
                try:
                    data = memoryview(await task)
                finally:
                    task.cancel()
                for piece in halves(data[max(start - number * CHUNK, 0) : stop - number * CHUNK]):
                    yield piece
                del data, task
        finally:
            for number, task in ahead.items():
                task.cancel()
                budget.settle((this, number))
            budget.give(held)

    def opened() -> AsyncIterator[Piece]:
        return digest_checked(info.name, pieces()) if (start, stop) == (0, size) else pieces()

    return Stream(stop - start, opened)


async def _chunk(reader: Reader, manifest: Manifest, number: int) -> Piece:
    name = manifest.chunks[number]
    try:
        data = await reader.whole(name)
    except NotFound as error:
        raise Unavailable(
            f"{name}, a chunk of this object, is on none of the servers; "
            "run `dolmen replicate`, or upload the object again"
        ) from error
    if len(data) != min(CHUNK, manifest.size - number * CHUNK):
        raise Corrupt(f"{name} is not as long as the manifest says")
    return data
