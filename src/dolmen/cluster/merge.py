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
    heap: list[tuple[int, str, int, BlobInfo]] = []
    keys = list(listings)

    async def advance(which: int) -> None:
        info = await anext(listings[keys[which]], None)
        if info is not None:
            heapq.heappush(heap, (partition_of(info.name), info.name, which, info))

    for which in range(len(keys)):
        await advance(which)
    while heap:
        name = heap[0][1]
        found: dict[K, BlobInfo] = {}
        while heap and heap[0][1] == name:
            _, _, which, info = heapq.heappop(heap)
            found[keys[which]] = info
            await advance(which)
        yield found
