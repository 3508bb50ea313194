"""Comparing two stores: what the destination lacks, or has at a lower rank.

First the digests, one request each; then only the partitions that differ are listed and merged,
in constant memory. Read first: `dolmen.store`, `dolmen.digests`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

from dolmen.closing import closing
from dolmen.cluster.merge import merge_listings
from dolmen.record import Kind
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Listing

K = TypeVar("K")


class Difference(NamedTuple):
    """What the source has under a name and the destination should get."""

    info: BlobInfo
    touch: bool
    """The destination has the content; only its stamp or metadata are behind."""


class Scope(NamedTuple):
    """What has to be listed to find the differences."""

    partitions: Sequence[int]
    """Ascending."""
    in_sync: int
    """Entries of the source in partitions that agree and need no listing."""
    total: int | None
    """Entries of the source in all partitions asked for; None without digests."""


async def scope(source: BlobStore, destination: BlobStore, partitions: Collection[int]) -> Scope:
    """Compare digests. Where either store keeps none, everything is listed."""
    for store in (source, destination):
        if not (store.capabilities.digests and store.capabilities.stamps):
            return Scope(sorted(partitions), 0, None)
    ours, theirs = await source.digests(), await destination.digests()
    counts = ours.counts
    if partitions is not ALL_PARTITIONS:
        counts = {at: count for at, count in counts.items() if at in partitions}
    differing = [at for at in ours.differing(theirs) if at in counts]
    total = sum(counts.values())
    return Scope(differing, total - sum(counts[at] for at in differing), total)


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
            if (info := held.get("source")) is not None:
                other = held.get("destination")
                yield info, _difference(info, other, stamped=stamped, ranked=ranked)


def _difference(
    info: BlobInfo, other: BlobInfo | None, *, stamped: bool, ranked: bool
) -> Difference | None:
    if other is None:
        carried = stamped or info.kind != Kind.TOMBSTONE
        return Difference(info, touch=False) if carried else None
    if not ranked or other.rank >= info.rank:
        return None
    same = other.kind == info.kind and other.checksum == info.checksum
    return Difference(info, touch=same and info.kind != Kind.TOMBSTONE)


async def listed(
    stores: Mapping[K, BlobStore],
    partitions: Sequence[int] | Mapping[K, Sequence[int]] = ALL_PARTITIONS,
    *,
    prefix: str = "",
) -> AsyncIterator[Mapping[K, BlobInfo]]:
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
