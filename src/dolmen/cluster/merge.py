"""Listings of several stores read side by side: one merge for reads, repair, gc and check."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from dolmen.names import partition_of
from dolmen.store import BlobInfo

K = TypeVar("K")


async def merge_listings(
    listings: Mapping[K, AsyncIterator[BlobInfo]],
) -> AsyncIterator[dict[K, BlobInfo]]:
    """For each name, in list order, what each listing that has it says of it.

    The listings must be in list order and end by themselves; what one raises ends the merge.
    The caller closes them.
    """
    sources = list(listings.items())
    heap: list[tuple[int, str, int, BlobInfo]] = []
    for which, (_, infos) in enumerate(sources):
        if (first := await anext(infos, None)) is not None:
            heap.append((partition_of(first.name), first.name, which, first))
    heapq.heapify(heap)
    while heap:
        name = heap[0][1]
        found: dict[K, BlobInfo] = {}
        while heap and heap[0][1] == name:
            _, _, which, info = heap[0]
            key, infos = sources[which]
            found[key] = info
            try:
                info = await anext(infos)
            except StopAsyncIteration:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (partition_of(info.name), info.name, which, info))
        yield found
