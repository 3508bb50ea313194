"""Listings, and the digests that sum them up."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from dolmen.digests import Digests
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob, BlobInfo, BlobStore, Failed
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    at,
    crowd,
    info_of,
    names,
    noise,
    recomputed,
    streamed,
)
from dolmen.testing.conformance.rivals import same
from dolmen.testing.conformance.setting import Suite


async def fill(store: BlobStore, chosen: list[str], *, deleted: int = 0) -> list[BlobInfo]:
    """Put a small blob under each name; every `deleted`-th is a tombstone.

    Neither the order of arrival nor that of the stamps is the order of listing.
    """
    infos = []
    for number, name in enumerate(chosen):
        stamp = at(number * 37 % 1009)
        if deleted and number % deleted == 0:
            infos.append(info_of(name, b"", stamp=stamp, kind=Kind.TOMBSTONE))
        else:
            infos.append(info_of(name, name.encode(), stamp=stamp, meta=META))

    async def blobs() -> AsyncIterator[Blob]:
        for info in sorted(infos, key=lambda info: info.name[::-1]):
            yield Blob(info, Bytes(info.name.encode() if info.size else b""))

    async for answer in calls.put_many(store, blobs()):
        assert not isinstance(answer, Failed), answer
    return infos


class Listings(Suite):
    """Listings and digests."""

    async def test_an_empty_store_lists_nothing(self, store: BlobStore) -> None:
        assert await names(store.list()) == []
        assert await names(calls.listing(store, tombstones=True, prefix="a", after="b")) == []
        assert await store.digests() == Digests({})

    async def test_everything_is_listed_in_order_with_all_that_is_known(
        self, store: BlobStore
    ) -> None:
        infos = await fill(store, crowd(), deleted=7)
        listed = [info async for info in calls.listing(store, tombstones=True)]
        assert [info.name for info in listed] == crowd()
        assert all(same(found, wanted) for found, wanted in zip(listed, infos, strict=True))
        live = [info.name for info in infos if info.kind is not Kind.TOMBSTONE]
        assert await names(store.list()) == live

    async def test_a_listing_begins_behind_any_name(self, store: BlobStore) -> None:
        chosen = crowd()[:40]
        await fill(store, chosen)
        for number, name in enumerate(chosen):
            assert await names(calls.listing(store, after=name)) == chosen[number + 1 :]
            absent = name + "0"
            place = (partition_of(absent), absent.encode())
            behind = [name for name in chosen if (partition_of(name), name.encode()) > place]
            assert await names(calls.listing(store, after=absent)) == behind

    async def test_pages_put_together_are_the_listing(self, store: BlobStore) -> None:
        await fill(store, crowd())
        paged: list[str] = []
        while True:
            listing = calls.listing(store, after=paged[-1] if paged else None)
            page = await names(_first(37, listing))
            paged += page
            if len(page) < 37:
                break
        assert paged == crowd()

    async def test_a_prefix_and_partitions_narrow_a_listing(self, store: BlobStore) -> None:
        await fill(store, crowd())
        for prefix in ("n", "n1", "n19", crowd()[3], "N", "x"):
            wanted = [name for name in crowd() if name.startswith(prefix)]
            assert await names(calls.listing(store, prefix=prefix)) == wanted
        held = sorted({partition_of(name) for name in crowd()})
        after = crowd()[len(crowd()) // 2]
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
            behind = [name for name in wanted if crowd().index(name) > crowd().index(after)]
            assert await names(calls.listing(store, partitions=partitions, after=after)) == behind
            ones = [name for name in wanted if name.startswith("n1")]
            assert await names(calls.listing(store, partitions=partitions, prefix="n1")) == ones

    async def test_what_is_there_throughout_is_listed_once_whatever_else_is_written(
        self, store: BlobStore
    ) -> None:
        steady = [f"steady{number}" for number in range(900)]
        fleeting = [f"fleeting{number}" for number in range(300)]
        late = [f"late{number}" for number in range(300)]
        await fill(store, steady + fleeting)
        seen: Counter[str] = Counter()
        order: list[tuple[int, str]] = []
        async for info in store.list():
            seen[info.name] += 1
            order.append((partition_of(info.name), info.name))
            number = len(order)
            if number % 4 == 0 and number // 4 < 300:
                turn = number // 4
                await asyncio.gather(
                    calls.delete(store, fleeting[turn]),
                    calls.put(store, late[turn], Bytes(b"late")),
                    calls.put(store, steady[turn * 3], Bytes(steady[turn * 3].encode())),
                )
        assert order == sorted(order)
        assert all(seen[name] == 1 for name in steady)
        assert all(count == 1 for count in seen.values())
        assert set(seen) <= {*steady, *fleeting, *late}

    async def test_a_listing_may_be_abandoned(self, store: BlobStore) -> None:
        await fill(store, crowd())
        for _ in range(5):
            assert await names(_first(3, store.list())) == crowd()[:3]
        await calls.put(store, "more", Bytes(b"more"))
        assert len(await names(store.list())) == len(crowd()) + 1

    async def test_digests_follow_every_write(self, store: BlobStore) -> None:
        model = MemoryStore()
        big = noise(300_000)
        steps: list[Callable[[BlobStore], Awaitable[object]]] = [
            lambda store: fill(store, crowd()[:30], deleted=5),
            lambda store: calls.put(store, "a", Bytes(b"one"), stamp=at(1)),
            lambda store: calls.put(store, "a", Bytes(b"one"), stamp=at(2)),
            lambda store: calls.put(store, "a", Bytes(b"one"), stamp=at(2), meta=META),
            lambda store: calls.put(store, "a", streamed(big), stamp=at(3)),
            lambda store: calls.put(store, "a", Bytes(b"late"), stamp=at(2)),
            lambda store: calls.touch(
                store, "a", stamp=at(4), checksum=checksum_of(big), meta=META
            ),
            lambda store: calls.put(store, "a", Bytes(b""), stamp=at(5), kind=Kind.MANIFEST),
            lambda store: calls.delete(store, "a", stamp=at(6)),
            lambda store: calls.delete(store, "a", stamp=at(7)),
            lambda store: calls.put(store, "a", Bytes(b"again"), stamp=at(8)),
            lambda store: calls.remove(store, "a", if_stamp=at(8)),
            lambda store: calls.remove(store, crowd()[0], if_stamp=at(0)),
        ]
        for number, step in enumerate(steps):
            await step(store)
            await step(model)
            digests = await store.digests()
            assert digests == await recomputed(store), number
            assert digests.encode() == (await model.digests()).encode(), number
            assert digests.root == (await model.digests()).root

    async def test_digests_do_not_depend_on_the_order_of_arrival(self, store: BlobStore) -> None:
        model = MemoryStore()
        infos = await fill(store, crowd()[:50], deleted=3)
        for info in reversed(infos):
            if info.kind is Kind.TOMBSTONE:
                await calls.put(model, info.name, Bytes(b"before"), stamp=info.stamp - 1)
                await calls.delete(model, info.name, stamp=info.stamp)
            else:
                data = Bytes(info.name.encode())
                await calls.put(model, info.name, data, stamp=info.stamp, meta=info.metadata)
        assert list((await store.digests()).differing(await model.digests())) == []
        await calls.put(model, infos[1].name, Bytes(b"else"), stamp=at(1000))
        differing = list((await store.digests()).differing(await model.digests()))
        assert differing == [partition_of(infos[1].name)]


async def _first(count: int, listing: AsyncIterator[BlobInfo]) -> AsyncIterator[BlobInfo]:
    """So many entries of a listing at most; the rest is not asked for."""
    for _ in range(count):
        try:
            yield await anext(listing)
        except StopAsyncIteration:
            return
