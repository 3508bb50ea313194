"""Listings of a volume: pages of whole partitions, read from the index in a thread.

Each page is as of one moment and begins behind the partition the last one ended with, so a
name that is there throughout comes exactly once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from dolmen.names import PARTITIONS, partition_of
from dolmen.record import Kind
from dolmen.store import BlobInfo, Listing
from dolmen.stores.volume.entry import name_of, unpack
from dolmen.stores.volume.index import Index

_PAGE = 1_000
Ask = Callable[..., Any]
"""Runs a call with its arguments in a thread, and awaits it."""


async def list_index(ask: Ask, index: Index, listing: Listing) -> AsyncIterator[BlobInfo]:
    """What a listing asks for, in list order."""
    after = listing.after
    begin = -1 if after is None else partition_of(after)
    for start, stop in _runs(listing.partitions, begin):
        at = start
        while at < stop:
            page, at = await ask(_page, index, at, stop, listing, begin)
            for info in page:
                yield info


def _runs(partitions: Sequence[int], begin: int) -> Iterator[tuple[int, int]]:
    """Ascending partitions from `begin` on, as ranges without gaps."""
    if isinstance(partitions, range) and partitions.step == 1:
        start = max(partitions.start, begin)
        if start < partitions.stop:
            yield start, partitions.stop
        return
    start = stop = -1
    for partition in partitions:
        if partition < begin:
            continue
        if partition != stop:
            if stop > start:
                yield start, stop
            start = partition
        stop = partition + 1
    if stop > start:
        yield start, stop


def _page(
    index: Index, start: int, stop: int, listing: Listing, begin: int
) -> tuple[list[BlobInfo], int]:
    """Entries of whole partitions that are to be listed, and the partition to go on with."""
    page: list[BlobInfo] = []
    after, prefix, tombstones = listing.after, listing.prefix, listing.tombstones
    partition, first, seen = start, 0, 0
    end = None if stop >= PARTITIONS else stop.to_bytes(2)
    for key, value in index.scan(start.to_bytes(2), end):
        found = int.from_bytes(key[:2])
        if found != partition:
            page[first:] = sorted(page[first:], key=_name)
            if seen >= _PAGE:
                return page, found
            partition, first = found, len(page)
        seen += 1
        name = name_of(key)
        if (found == begin and after is not None and name <= after) or not name.startswith(prefix):
            continue
        entry = unpack(value)
        if entry.damaged == listing.quarantined and (tombstones or entry.kind != Kind.TOMBSTONE):
            page.append(entry.info(name))
    page[first:] = sorted(page[first:], key=_name)
    return page, stop


def _name(info: BlobInfo) -> str:
    return info.name
