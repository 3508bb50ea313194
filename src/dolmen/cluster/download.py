"""Downloading a large object: its chunks in order, each checked before a byte goes out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from dolmen.cluster.budget import Budget
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.manifest import CHUNK, Manifest
from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.payload import Payload, Piece, Stream, read_whole
from dolmen.store import Range

AHEAD = 2
"""Chunks fetched before the one being sent has gone, while the budget has room."""
_STEP = 262_144


def chunks_payload(
    cluster: Cluster, budget: Budget, manifest: Manifest, byte_range: Range | None
) -> Payload:
    """The bytes of an object, or of a range of it, fetched as they are read.

    Only the chunks that are touched are fetched. Reading raises `Corrupt` or
    `Unavailable` when a chunk can't be had; a short object is never taken for whole.
    """
    start, stop = byte_range or (0, manifest.size)
    stop = min(stop, manifest.size)
    start = min(start, stop)
    return Stream(stop - start, lambda: _pieces(cluster, budget, manifest, start, stop))


async def _pieces(
    cluster: Cluster, budget: Budget, manifest: Manifest, start: int, stop: int
) -> AsyncIterator[Piece]:
    if start == stop:
        return
    first, last = start // CHUNK, (stop - 1) // CHUNK
    fetching: deque[asyncio.Task[Piece]] = deque()
    following = first
    try:
        for number in range(first, last + 1):
            if not fetching:
                await budget.take(CHUNK)
                fetching.append(_fetch(cluster, manifest, following))
                following += 1
            while following <= last and len(fetching) <= AHEAD and budget.try_take(CHUNK):
                fetching.append(_fetch(cluster, manifest, following))
                following += 1
            data = memoryview(await fetching[0])
            begin = max(start - number * CHUNK, 0)
            end = min(stop - number * CHUNK, CHUNK)
            for at in range(begin, end - _STEP, _STEP):
                yield data[at : at + _STEP]
            # The socket may hold the last piece for long: a copy, or all of the chunk stays.
            at = begin + max(0, (end - begin - 1) // _STEP) * _STEP
            yield bytes(data[at:end])
            del data
            fetching.popleft()
            budget.give(CHUNK)
    finally:
        for task in fetching:
            task.cancel()
        try:
            await asyncio.gather(*fetching, return_exceptions=True)
        finally:  # a client that goes away cancels what is already ending
            budget.give(CHUNK * len(fetching))


def _fetch(cluster: Cluster, manifest: Manifest, number: int) -> asyncio.Task[Piece]:
    return asyncio.create_task(_chunk(cluster, manifest.chunks, number, manifest.size))


async def _chunk(cluster: Cluster, chunks: Sequence[str], number: int, size: int) -> Piece:
    name = chunks[number]
    try:
        blob = await cluster.get(name)
    except NotFound as error:
        raise Unavailable(
            f"{name}, a chunk of this object, is on none of the servers; run `dolmen replicate`, "
            "or upload the object again"
        ) from error
    data = await read_whole(blob.payload)
    if len(data) != min(CHUNK, size - number * CHUNK):
        raise Corrupt(f"{name} is not as long as the manifest says")
    return data
