"""Comparing: what the destination lacks, or has at a lower rank, in constant memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.replication.patience import Pause, ask, listing
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore
from dolmen.stores.horizon import NO_HORIZONS, Horizons


class Difference(NamedTuple):
    """What the source has under a name and the destination should get."""

    info: BlobInfo
    touch: bool
    """The destination has the content; only its stamp or metadata are behind."""
    doubtful: bool = False
    """It may have been deleted at the destination, which has forgotten it by now."""


class Scope(NamedTuple):
    """What has to be listed to find the differences."""

    partitions: Sequence[int]
    """Ascending."""
    in_step: int
    """Entries of the source in partitions that agree and need no listing."""
    total: int | None
    """Entries of the source in all partitions asked for; None where nobody keeps digests."""


async def scope(
    source: BlobStore, destination: BlobStore, partitions: Collection[int], pause: Pause
) -> Scope:
    """Compare digests, one request each; a store that keeps none is listed whole."""
    for store in (source, destination):
        if not (store.capabilities.digests and store.capabilities.stamps):
            return Scope(sorted(partitions), 0, None)
    ours = await ask(source.digests, side="source", pause=pause)
    theirs = await ask(destination.digests, side="destination", pause=pause)
    counts = ours.counts
    if partitions is not ALL_PARTITIONS:
        counts = {at: count for at, count in counts.items() if at in partitions}
    differing = [at for at in ours.differing(theirs) if at in counts]
    total = sum(counts.values())
    return Scope(differing, total - sum(counts[at] for at in differing), total)


async def compare(
    source: BlobStore,
    destination: BlobStore,
    partitions: Sequence[int],
    pause: Pause,
    horizons: Horizons = NO_HORIZONS,
) -> AsyncIterator[tuple[BlobInfo, Difference | None]]:
    """Everything the source has in these partitions, with the difference where there is one.

    Where either store keeps no stamps, names alone are compared: nobody can say
    which of two contents is newer, so what stands at the destination stays, and
    a delete is not carried to a store that has no tombstones.
    """
    stamped = destination.capabilities.stamps
    ranked = stamped and source.capabilities.stamps
    async with (
        closing(listing(source, partitions, side="source", pause=pause)) as ours,
        closing(listing(destination, partitions, side="destination", pause=pause)) as theirs,
        closing(pairs(ours, theirs)) as both,
    ):
        async for info, other in both:
            yield info, difference(info, other, horizons, stamped=stamped, ranked=ranked)


def difference(
    info: BlobInfo, other: BlobInfo | None, horizons: Horizons, *, stamped: bool, ranked: bool
) -> Difference | None:
    """What sets the destination, which has `other` under the name, apart from the source.

    `stamped` says whether the destination keeps stamps, `ranked` whether both do.
    """
    if other is None:
        if horizons.forgotten(info) or not (stamped or info.kind != Kind.TOMBSTONE):
            return None
        return Difference(info, touch=False, doubtful=horizons.doubtful(info))
    if not ranked or other.rank >= info.rank:
        return None
    same = other.kind == info.kind and other.checksum == info.checksum
    return Difference(info, touch=same and info.kind != Kind.TOMBSTONE)


class Followed:
    """A listing, for whoever comes by with names in list order."""

    def __init__(self, infos: AsyncIterator[BlobInfo]) -> None:
        self._infos = infos
        self._info: BlobInfo | None = None
        self._reached = _START
        self._asked = _START

    def behind(self, name: str) -> bool:
        """Whether the place of this name has been passed: `find` can't tell then."""
        return (partition_of(name), name) < self._asked

    async def find(self, name: str) -> BlobInfo | None:
        """What is listed under a name, which comes no earlier in list order than the last."""
        self._asked = (partition_of(name), name)
        while self._reached < self._asked:
            self._info, self._reached = await _next(self._infos)
        return self._info if self._reached == self._asked else None


async def pairs(
    ours: AsyncIterator[BlobInfo], theirs: AsyncIterator[BlobInfo]
) -> AsyncIterator[tuple[BlobInfo, BlobInfo | None]]:
    """Each of ours with what stands under its name in theirs; both come in list order."""
    followed = Followed(theirs)
    async for info in ours:
        yield info, await followed.find(info.name)


async def _next(infos: AsyncIterator[BlobInfo]) -> tuple[BlobInfo | None, tuple[int, str]]:
    info = await anext(infos, None)
    return (info, (partition_of(info.name), info.name)) if info else (None, _END)


_START, _END = (-1, ""), (65_536, "")  # before and behind every place in list order
