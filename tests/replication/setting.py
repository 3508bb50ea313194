"""What the tests of replication share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable

from dolmen.payload import Bytes
from dolmen.store import BlobStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore


async def no_time(_seconds: float) -> None:
    """A pause that takes no time at all."""
    await asyncio.sleep(0)


async def put_on(stores: Iterable[FaultyStore], name: str, *, stamp: int = 5) -> None:
    """Put the same content on these, whatever they would fail at."""
    for store in stores:
        await calls.put(store.store, name, Bytes(b"content"), stamp=stamp)


async def names_on(store: BlobStore) -> set[str]:
    """Everything a store holds, deleted names too."""
    return {info.name async for info in calls.listing(store, tombstones=True)}


async def broken_off(
    work: Coroutine[object, object, object], stores: Iterable[FaultyStore], *, after: int
) -> bool:
    """Do the work, but cancel it when the stores have been called that often; whether it was."""
    stores = list(stores)
    task = asyncio.ensure_future(work)
    left = after

    async def count(_method: str, _name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            task.cancel()
            await asyncio.Event().wait()

    for store in stores:
        store.pause = count
    await asyncio.wait([task])
    for store in stores:
        store.pause = None
    if not task.cancelled():
        task.result()
    return task.cancelled()
