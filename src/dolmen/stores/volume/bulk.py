"""Many operations of one volume under way at once, answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from dolmen.errors import Corrupt, DolmenError, NotFound
from dolmen.record import Kind
from dolmen.store import NO_CHECKSUM, BlobInfo, BlobStore, Failed, Put, Write
from dolmen.stores.base import UnderWay
from dolmen.stores.volume.answer import Answer
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.reader import Reader

_WINDOW = 256
_VERIFIED_AT_ONCE = 4


async def write_many(store: BlobStore, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
    """See `BlobStore.write_many`. A write that gives an `Answer` needs no task of its own."""
    under_way: deque[tuple[str, Awaitable[Put] | DolmenError]] = deque()
    try:
        async for write in writes:
            try:
                answer = store.write(write)
                if not isinstance(answer, Answer):
                    answer = asyncio.ensure_future(answer)
                under_way.append((write.name, answer))
            except DolmenError as error:
                under_way.append((write.name, error))
            # A payload that is streamed must be read before the next one is asked for.
            most = _WINDOW if write.payload.whole is not None else 0
            while len(under_way) > most:
                yield await _outcome(*under_way.popleft())
        while under_way:
            yield await _outcome(*under_way.popleft())
    finally:
        for _, left in under_way:
            if isinstance(left, asyncio.Future):
                left.cancel()


async def _outcome(name: str, answer: Awaitable[Put] | DolmenError) -> Put | Failed:
    if isinstance(answer, DolmenError):
        return Failed(name, answer)
    try:
        return await answer
    except DolmenError as error:
        return Failed(name, error)


async def verify_many(
    live: Callable[[str], Entry], reader: Reader, names: Sequence[str]
) -> AsyncIterator[BlobInfo | Failed]:
    """See `BlobStore.verify_many`. `live` looks up the entry of a live blob."""
    async with UnderWay[BlobInfo | Failed]() as under_way:
        for name in names:
            if len(under_way) == _VERIFIED_AT_ONCE:
                yield await under_way.next()
            under_way.add(_verify(live, reader, name))
        while under_way:
            yield await under_way.next()


async def _verify(live: Callable[[str], Entry], reader: Reader, name: str) -> BlobInfo | Failed:
    try:
        entry = live(name)
        wrong = await reader.verify(name, entry)
    except NotFound as absent:
        if not absent.stamp:
            return Failed(name, absent)
        return BlobInfo(name, 0, Kind.TOMBSTONE, absent.stamp, NO_CHECKSUM)
    except DolmenError as error:
        return Failed(name, error)
    return Failed(name, Corrupt(wrong)) if wrong else entry.info(name)
