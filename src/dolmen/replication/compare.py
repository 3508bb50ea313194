"""Comparing two stores: what the destination lacks, or has at a lower rank.

Listings are read side by side and merged, in constant memory. Read first: `dolmen.store`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.cluster.merge import merge_listings
from dolmen.record import Kind
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Listing


class Difference(NamedTuple):
    """What the source has under a name and the destination should get."""

    info: BlobInfo
    touch: bool = False
    """The destination has the content; only its stamp or metadata are behind."""


async def compare(
    source: BlobStore, destination: BlobStore, partitions: Sequence[int]
) -> AsyncIterator[tuple[BlobInfo, Difference | None]]:
    """Everything the source has in these partitions, with the difference where there is one.

    Where either store keeps no stamps, names alone are compared: nobody can say which of two
    contents is newer, so what is at the destination stays, and a delete is not carried to a
    store without tombstones.
    """
    stamped = destination.capabilities.stamps
    ranked = stamped and source.capabilities.stamps
    stores = {"source": source, "destination": destination}
    async with closing(listed(stores, partitions)) as names:
        async for held in names:
            if (info := held.get("source")) is None:
                continue
            difference = None
            if (other := held.get("destination")) is None:
                if stamped or info.kind != Kind.TOMBSTONE:
                    difference = Difference(info)
            elif ranked and other.rank < info.rank:
                same = (other.kind, other.checksum) == (info.kind, info.checksum)
                difference = Difference(info, touch=same and info.kind != Kind.TOMBSTONE)
            yield info, difference


async def listed(
    stores: Mapping[str, BlobStore],
    partitions: Sequence[int] | Mapping[str, Sequence[int]] = ALL_PARTITIONS,
    *,
    prefix: str = "",
) -> AsyncIterator[Mapping[str, BlobInfo]]:
    """For every name, in list order, what each store has of it, tombstones included.

    `partitions` ascend; they may differ from store to store.
    """
    async with AsyncExitStack() as stack:
        listings = {}
        for key, store in stores.items():
            some = partitions[key] if isinstance(partitions, Mapping) else partitions
            infos = store.list(Listing(some, None, prefix, tombstones=True))
            listings[key] = await stack.enter_async_context(closing(infos))
        async with closing(merge_listings(listings)) as merged:
            async for held in merged:
                yield held
