"""Several stores listed side by side, in constant memory."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager

from dolmen.closing import closing
from dolmen.errors import Outdated, Unavailable
from dolmen.names import partition_of
from dolmen.replication.patience import Pause, Stopped, listing
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore


async def side_by_side(
    stores: Mapping[str, BlobStore],
    *,
    partitions: Mapping[str, Sequence[int]] | None = None,
    pause: Pause,
) -> AsyncIterator[Mapping[str, BlobInfo]]:
    """For every name, in list order, what each store has of it: by the store's, tombstones too.

    `partitions` says which to list of each store, ascending; otherwise all. Raises `Stopped`,
    which says who failed.
    """
    async with AsyncExitStack() as stack:
        listings = {}
        for which, store in stores.items():
            wanted = ALL_PARTITIONS if partitions is None else partitions[which]
            infos = listing(store, wanted, side="source", pause=pause)
            listings[which] = await stack.enter_async_context(closing(infos))
        heap: list[tuple[int, str, str, BlobInfo]] = []

        async def advance(which: str) -> None:
            with naming(which):
                info = await anext(listings[which], None)
            if info is not None:
                heapq.heappush(heap, (partition_of(info.name), info.name, which, info))

        for which in listings:
            await advance(which)
        while heap:
            name = heap[0][1]
            held = {}
            while heap and heap[0][1] == name:
                _, _, which, info = heapq.heappop(heap)
                held[which] = info
                await advance(which)
            yield held


@contextmanager
def told() -> Iterator[None]:
    """Let a server that failed be an error for whoever asked for the work."""
    try:
        yield
    except Stopped as stopped:
        if isinstance(stopped.error, Outdated):
            raise Outdated(f"{stopped.who}: {stopped.error}") from stopped
        raise Unavailable(f"{stopped.who}: {stopped.error}") from stopped


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let a server that fails be named."""
    try:
        yield
    except Stopped as stopped:
        stopped.who = name
        raise
