"""Work on stores that is broken off in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable

from dolmen.testing.faulty import FaultyStore


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
