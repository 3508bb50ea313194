"""Listing what the index holds, a page at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.store import ALL_PARTITIONS, BlobInfo
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import Page, Run
from dolmen.stores.volume.key import name_of

PageOf = Callable[[list[Run], int], Awaitable[Page]]
PAGE = 128
"""Entries read from the index before the next are asked for: a way to a thread and back."""
_SLICE = 16
"""Entries given before others of the event loop have their turn. A listing is no hurry."""


async def list_index(
    page_of: PageOf,
    partitions: Iterable[int],
    after: str | None,
    prefix: str,
    *,
    tombstones: bool,
) -> AsyncIterator[BlobInfo]:
    """See `BlobStore.list`. `page_of` is `Index.page`, from another thread."""
    async for name, entry in _entries(page_of, partitions, after, prefix):
        if not entry.damaged and (tombstones or entry.kind != Kind.TOMBSTONE):
            yield entry.info(name)


async def list_damaged(page_of: PageOf) -> AsyncIterator[str]:
    """See `BlobStore.quarantined`. Reads the whole index."""
    async for name, entry in _entries(page_of, ALL_PARTITIONS, None, ""):
        if entry.damaged:
            yield name


async def _entries(
    page_of: PageOf, partitions: Iterable[int], after: str | None, prefix: str
) -> AsyncIterator[tuple[str, Entry]]:
    last = (partition_of(after), after) if after is not None else (0, "")
    runs = [(max(first, last[0]), stop) for first, stop in runs_of(partitions) if stop > last[0]]
    while runs:
        page, runs = await page_of(runs, PAGE)
        listed = [(int.from_bytes(key[:2]), name_of(key), value) for key, value in page]
        listed.sort()
        for number, (partition, name, value) in enumerate(listed, 1):
            if (partition, name) > last and name.startswith(prefix):
                yield name, unpack(value)
            if number % _SLICE == 0:
                await asyncio.sleep(0)


def runs_of(partitions: Iterable[int]) -> Iterable[Run]:
    """Ascending partitions as ranges: first, and the one after the last."""
    if isinstance(partitions, range) and partitions.step == 1:
        if partitions:
            yield partitions.start, partitions.stop
        return
    first = stop = -1
    for partition in partitions:
        if partition != stop:
            if first >= 0:
                yield first, stop
            first = partition
        stop = partition + 1
    if first >= 0:
        yield first, stop
