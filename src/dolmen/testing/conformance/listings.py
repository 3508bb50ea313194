"""Listings, and the digests that sum them up."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from dolmen.digests import Digests
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import BlobInfo, BlobStore, Failed, Write
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    at,
    crowd,
    each,
    left_by,
    names,
    same,
)
from dolmen.testing.conformance.setting import Suite


async def fill(store: BlobStore, chosen: list[str], *, deleted: int = 0) -> list[Write]:
    """Put a small blob under each name; every `deleted`-th is a tombstone.

    Neither the order of arrival nor that of the stamps is the order of listing.
    """
    writes = [
        Write.tombstone(name, stamp=at(number * 37 % 1009))
        if deleted and number % deleted == 0
        else Write(name, Bytes(name.encode()), metadata=META, stamp=at(number * 37 % 1009))
        for number, name in enumerate(chosen)
    ]
    arriving = sorted(writes, key=lambda write: write.name[::-1])
    async for answer in store.write_many(each(arriving)):
        assert not isinstance(answer, Failed), answer
    return writes


async def first(count: int, listing: AsyncIterator[BlobInfo]) -> list[str]:
    """The first names of a listing, of which the rest is not asked for."""
    found = []
    async for info in listing:
        found.append(info.name)
        if len(found) == count:
            break
    return found


class Listings(Suite):
    """Listings and digests."""

    async def test_an_empty_store_lists_nothing(self, store: BlobStore) -> None:
        assert await names(store.list()) == []
        assert await names(calls.listing(store, tombstones=True, prefix="a", after="b")) == []
        assert await store.digests() == Digests({})

    async def test_everything_is_listed_in_order_with_all_that_is_known(
        self, store: BlobStore
    ) -> None:
        writes = await fill(store, crowd(), deleted=7)
        listed = [info async for info in calls.listing(store, tombstones=True)]
        assert [info.name for info in listed] == crowd()
        assert all(same(info, left_by(write)) for info, write in zip(listed, writes, strict=True))
        live = [write.name for write in writes if write.kind != Kind.TOMBSTONE]
        assert await names(store.list()) == live

    async def test_a_listing_begins_behind_any_name_and_may_be_abandoned(
        self, store: BlobStore
    ) -> None:
        names = crowd()
        await fill(store, names)
        places = [(partition_of(name), name) for name in names]
        last = len(names) - 1
        crowded = [number for number in range(last) if places[number][0] == places[number + 1][0]]
        for number in (0, 1, *crowded[:8], last - 1, last):
            behind = names[number + 1 :]
            assert await first(9, calls.listing(store, after=names[number])) == behind[:9]
            absent = names[number] + "0"
            behind = [
                name for place, name in places if (place, name) > (partition_of(absent), absent)
            ]
            assert await first(9, calls.listing(store, after=absent)) == behind[:9]

    async def test_pages_put_together_are_the_listing(self, store: BlobStore) -> None:
        await fill(store, crowd())
        paged: list[str] = []
        while page := await first(61, calls.listing(store, after=paged[-1] if paged else None)):
            paged += page
        assert paged == crowd()

    async def test_a_prefix_and_partitions_narrow_a_listing(self, store: BlobStore) -> None:
        await fill(store, crowd())
        for prefix in ("n", "n1", "n19", crowd()[3], "N", "x"):
            wanted = [name for name in crowd() if name.startswith(prefix)]
            assert await names(calls.listing(store, prefix=prefix)) == wanted
        held = sorted({partition_of(name) for name in crowd()})
        after = crowd()[len(crowd()) // 2]
        later = set(crowd()[len(crowd()) // 2 + 1 :])
        for partitions in (
            range(0),
            range(65_536),
            range(held[2]),
            range(held[1], held[-2]),
            range(held[1] + 1, 65_536),
            [],
            [held[0]],
            held[1::3],
            [*range(held[0], held[1] + 1), held[5], 65_535],
        ):
            chosen = set(partitions)
            wanted = [name for name in crowd() if partition_of(name) in chosen]
            assert await names(calls.listing(store, partitions=partitions)) == wanted
            narrowed = calls.listing(store, partitions=partitions, after=after, prefix="n1")
            behind = [name for name in wanted if name in later and name.startswith("n1")]
            assert await names(narrowed) == behind

    async def test_what_is_there_throughout_is_listed_once_whatever_else_is_written(
        self, store: BlobStore
    ) -> None:
        steady = [f"steady{number}" for number in range(900)]
        fleeting = [f"fleeting{number}" for number in range(200)]
        late = [f"late{number}" for number in range(200)]
        await fill(store, steady + fleeting)
        seen: Counter[str] = Counter()
        order: list[tuple[int, str]] = []
        async for info in store.list():
            seen[info.name] += 1
            order.append((partition_of(info.name), info.name))
            turn, rest = divmod(len(order), 4)
            if not rest and turn < 200:
                await asyncio.gather(
                    calls.delete(store, fleeting[turn]),
                    calls.put(store, late[turn], Bytes(b"late")),
                    calls.put(store, steady[turn * 4], Bytes(steady[turn * 4].encode())),
                )
        assert order == sorted(order)
        assert all(seen[name] == 1 for name in steady)
        assert all(count == 1 for count in seen.values())
        assert set(seen) <= {*steady, *fleeting, *late}

    async def test_digests_tell_in_which_partitions_stores_differ(self, store: BlobStore) -> None:
        model = MemoryStore()
        for each_ in (store, model):
            await fill(each_, crowd(), deleted=5)
        assert (await store.digests()).encode() == (await model.digests()).encode()
        changed = [crowd()[number] for number in (1, 3, 6)]
        await calls.put(model, changed[0], Bytes(b"else"), stamp=at(2000))
        await calls.delete(model, changed[1], stamp=at(2000))
        data = Bytes(changed[2].encode())
        await calls.put(model, changed[2], data, stamp=at(2000), meta=META)
        differing = (await store.digests()).differing(await model.digests())
        assert list(differing) == sorted({partition_of(name) for name in changed})
