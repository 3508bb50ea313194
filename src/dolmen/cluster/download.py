"""Downloading a large object: its chunks in order, each checked before a byte goes out.

A download holds one chunk, and its manifest, in memory while they are sent. Those fetched
ahead are on loan from the budget: they are dropped as soon as somebody else waits for
memory, and fetched again later. So slow readers, however many, hold one chunk each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dolmen.cluster.budget import Budget
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
    download = _Download(reader, budget)

    def opened() -> AsyncIterator[Piece]:
        pieces = download.pieces(info, size, start, stop, manifest)
        return digest_checked(info.name, pieces) if (start, stop) == (0, size) else pieces

    return Stream(stop - start, opened)


class _Download:
    def __init__(self, reader: Reader, budget: Budget) -> None:
        self._reader, self._budget = reader, budget

    async def pieces(
        self, info: BlobInfo, size: int, start: int, stop: int, manifest: Manifest | None
    ) -> AsyncIterator[Piece]:
        if start == stop:
            return
        budget = self._budget
        held = min(CHUNK + info.size, budget.size)
        await budget.take(held)  # all at once: nobody holds some of it and waits for more
        ahead: dict[int, asyncio.Task[Piece]] = {}
        try:
            if manifest is None:
                manifest = decode(await self._reader.whole(info.name))
            if manifest.size != size:
                raise Unavailable(f"{info.name} was written anew while it was read; try again")
            first, last = start // CHUNK, (stop - 1) // CHUNK
            for number in range(first, last + 1):
                task = ahead.pop(number, None) or self._fetch(manifest, number)
                budget.settle(task)  # what is sent now has its place in what is held
                for following in range(number + 1, min(number + AHEAD, last) + 1):
                    if following not in ahead:
                        self._lend(ahead, following, manifest)
                try:
                    data = memoryview(await task)
                finally:
                    task.cancel()
                for piece in halves(data[max(start - number * CHUNK, 0) : stop - number * CHUNK]):
                    yield piece
                del data, task
        finally:
            for task in ahead.values():
                task.cancel()
                budget.settle(task)
            budget.give(held)

    def _lend(self, ahead: dict[int, asyncio.Task[Piece]], number: int, manifest: Manifest) -> None:
        if self._budget.free < CHUNK:
            return
        task = self._fetch(manifest, number)
        if self._budget.lend(task, CHUNK, lambda: ahead.pop(number).cancel()):
            ahead[number] = task
        else:
            task.cancel()

    def _fetch(self, manifest: Manifest, number: int) -> asyncio.Task[Piece]:
        task = asyncio.create_task(self._chunk(manifest, number))
        task.add_done_callback(_heard)
        return task

    async def _chunk(self, manifest: Manifest, number: int) -> Piece:
        name = manifest.chunks[number]
        try:
            data = await self._reader.whole(name)
        except NotFound as error:
            raise Unavailable(
                f"{name}, a chunk of this object, is on none of the servers; "
                "run `dolmen replicate`, or upload the object again"
            ) from error
        if len(data) != min(CHUNK, manifest.size - number * CHUNK):
            raise Corrupt(f"{name} is not as long as the manifest says")
        return data


def _heard(task: asyncio.Task[Piece]) -> None:
    if not task.cancelled():
        task.exception()  # one fetched ahead may be dropped before anybody asks how it went
