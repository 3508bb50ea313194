"""Listing what the index holds, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.store import BlobInfo
from dolmen.stores.volume.entry import unpack
from dolmen.stores.volume.index import Page, Run
from dolmen.stores.volume.key import name_of

PAGE = 1024
"""Entries read from the index before the next are asked for: a way to a thread and back."""


async def list_index(
    page_of: Callable[[list[Run], int], Awaitable[Page]],
    partitions: Iterable[int],
    after: str | None,
    prefix: str,
    *,
    tombstones: bool,
) -> AsyncIterator[BlobInfo]:
    """See `BlobStore.list`. `page_of` is `Index.page`, from another thread."""
    last = (partition_of(after), after) if after is not None else (0, "")
    runs = [(max(first, last[0]), stop) for first, stop in runs_of(partitions) if stop > last[0]]
    while runs:
        page, runs = await page_of(runs, PAGE)
        listed = [(int.from_bytes(key[:2]), name_of(key), value) for key, value in page]
        listed.sort()
        for partition, name, value in listed:
            if (partition, name) <= last or not name.startswith(prefix):
                continue
            entry = unpack(value)
            if not entry.damaged and (tombstones or entry.kind != Kind.TOMBSTONE):
                yield entry.info(name)


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
