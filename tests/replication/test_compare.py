"""Merging two listings, and what a comparison finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from hypothesis import given
from hypothesis import strategies as st

from dolmen.names import partition_of
from dolmen.replication.compare import pairs
from dolmen.store import BlobInfo

names = st.sets(st.from_regex(r"[a-c][a-c0-1]{0,2}", fullmatch=True), max_size=40)


class Listing:
    """Entries in list order; `given` counts how many were drawn."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names, key=lambda name: (partition_of(name), name))
        self.given = 0

    async def __aiter__(self) -> AsyncIterator[BlobInfo]:
        for name in self.names:
            self.given += 1
            yield BlobInfo(name, 0, 1, 1, bytes(16))


@given(names, names)
def test_each_of_ours_comes_once_in_order_with_its_counterpart(
    ours: set[str], theirs: set[str]
) -> None:
    async def run() -> None:
        left = Listing(ours)
        merged = pairs(aiter(left), aiter(Listing(theirs)))
        found = [(info.name, other.name if other else None) async for info, other in merged]
        assert found == [(name, name if name in theirs else None) for name in left.names]

    asyncio.run(run())


@given(names, names)
def test_no_listing_is_read_further_than_the_merge_has_come(
    ours: set[str], theirs: set[str]
) -> None:
    async def run() -> None:
        left, right = Listing(ours), Listing(theirs)
        async for info, _ in pairs(aiter(left), aiter(right)):
            place = left.names.index(info.name)
            assert left.given == place + 1
            behind = [
                name
                for name in right.names
                if (partition_of(name), name) < (partition_of(info.name), info.name)
            ]
            assert right.given <= len(behind) + 1

    asyncio.run(run())
