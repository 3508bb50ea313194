"""Downloading a large object: its chunks in order, each checked before a byte goes out.

A chunk is held in memory while it is sent, unless half of the budget is held already:
then it goes to an unlinked temporary file and is sent from there, so that readers who
are slow, however many, hold up nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from dolmen.buffers import Buffers
from dolmen.cluster.budget import Budget
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.manifest import CHUNK, Manifest
from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.payload import Payload, Piece, Stream, read_whole
from dolmen.record import BLOCK, block_sums
from dolmen.spool import Spool
from dolmen.store import Range

AHEAD = 2
"""Chunks fetched before the one being sent has gone, while less than half the budget is held."""
_STEP = 262_144
_steps = Buffers(_STEP, spare=16)
_TAIL = 131_072
"""More than a socket holds back before it asks its writer to wait."""


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
    loop = asyncio.get_running_loop()
    first, last = start // CHUNK, (stop - 1) // CHUNK
    fetching: deque[asyncio.Task[Piece]] = deque()
    following = first
    try:
        for number in range(first, last + 1):
            if not fetching:
                await budget.take(CHUNK)
                fetching.append(_fetch(cluster, manifest, following))
                following += 1
            while following <= last and len(fetching) <= AHEAD and budget.try_keep(CHUNK):
                fetching.append(_fetch(cluster, manifest, following))
                following += 1
            data = memoryview(await fetching[0])
            data = data[max(start - number * CHUNK, 0) : stop - number * CHUNK]
            if not budget.scarce:
                tail = max(len(data) - _TAIL, 0)
                if tail:
                    yield data[:tail]
                # The socket may hold this for long, but by then no view of the chunk any more.
                yield bytes(data[tail:])
                del data
                fetching.popleft()
                budget.give(CHUNK)
                continue
            spool, sums = await loop.run_in_executor(None, _put_aside, data)
            del data
            fetching.popleft()
            budget.give(CHUNK)
            for at in range(0, spool.size, _STEP):
                piece = await loop.run_in_executor(None, spool.read, at, _steps.take())
                if not sums.startswith(block_sums(piece), at // BLOCK * 4):
                    raise Corrupt("a temporary file gave other bytes than were written to it")
                yield piece
    finally:
        for task in fetching:
            task.cancel()
        try:
            await asyncio.gather(*fetching, return_exceptions=True)
        finally:  # a client that goes away cancels what is already ending
            budget.give(CHUNK * len(fetching))


def _put_aside(data: memoryview) -> tuple[Spool, bytes]:
    spool = Spool()
    spool.append(data)
    return spool, block_sums(data)


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
