"""Bytes in, the same bytes out: sizes, ranges, payloads that fail; listings and digests."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from dolmen.digests import Digests
from dolmen.errors import BadContent, Corrupt, DolmenError, TooLarge, Unavailable
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes, Stream
from dolmen.record import Kind
from dolmen.store import BlobInfo, BlobStore, Failed, Outcome, Write
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    MIB,
    at,
    content,
    crowd,
    each,
    failing,
    found,
    info_of,
    left_by,
    names,
    noise,
    read,
    same,
    streamed,
)
from dolmen.testing.conformance.setting import Suite

BLOCK = 65_536
SIZES = [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, MIB, 4 * MIB, 4 * MIB + 1, 9 * MIB + 12_345]


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


class Reads(Suite):
    """What is read is what was put, and what is listed is what is there."""

    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
    async def test_every_size_reads_as_it_was_put(self, store: BlobStore, whole: bool) -> None:
        for size in SIZES:
            name, data = f"n{size}", noise(size)
            pieces = (1, 4095, 65_537, 7, 300_001) if size > MIB else (1, 4095, 7)
            payload = Bytes(data) if whole else streamed(data, pieces)
            if size > store.capabilities.largest:
                with pytest.raises(TooLarge):
                    await calls.put(store, name, payload)
                assert await found(store, name) is None
                continue
            answer = await calls.put(store, name, payload, checksum=checksum_of(data))
            blob = await store.get(name)
            assert same(blob.info, info_of(name, data, stamp=answer.stamp))
            assert blob.payload.size == size
            assert blob.payload.whole is None or bytes(blob.payload.whole) == data
            assert await read(blob.payload) == data
            if blob.payload.rereadable:
                assert await read(blob.payload) == data

    async def test_every_range_reads_as_that_part(self, store: BlobStore) -> None:
        for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 200_000, 5 * MIB):
            if size > store.capabilities.largest:
                continue
            name, data = f"n{size}", noise(size)
            await calls.put(store, name, streamed(data, (100_000,)))
            edges = {0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, size - 1, size, size + 1}
            starts = sorted(edge for edge in edges if 0 <= edge <= size + 1)
            for number, start in enumerate(starts):
                for stop in [*starts[number : None if size < MIB else number + 3], 1 << 50]:
                    blob = await store.get(name, byte_range=(start, stop))
                    assert blob.info.size == size
                    assert blob.payload.size == len(data[start:stop]), (size, start, stop)
                    assert await read(blob.payload) == data[start:stop], (size, start, stop)

    @pytest.mark.parametrize("size", [10, 100_000, 2 * MIB, 5 * MIB])
    async def test_nothing_of_a_payload_that_fails_is_ever_visible(
        self, store: BlobStore, size: int
    ) -> None:
        if size > store.capabilities.largest:
            pytest.skip("this store keeps no blob as large")
        data = noise(size)
        before = await calls.put(store, "kept", Bytes(b"before"))
        broken: list[tuple[Stream, type[DolmenError]]] = [
            (failing(b"", size), DolmenError),
            (failing(data[: size // 2], size), DolmenError),
            (failing(data, size), DolmenError),
            (streamed(data[:-1]), BadContent),
            (streamed(data + b"!"), BadContent),
        ]
        for payload, error in broken:
            payload.size = size
            with pytest.raises(error):
                await calls.put(store, "name", payload)
        for name, stamp in (("name", at(1)), ("kept", before.stamp + 1)):
            with pytest.raises(DolmenError):
                await calls.put(store, name, failing(data[: size // 2], size), stamp=stamp)
        assert await found(store, "name") is None
        assert same(await store.stat("kept"), info_of("kept", b"before", stamp=before.stamp))
        assert await content(store, "kept") == b"before"
        assert await names(calls.listing(store, tombstones=True)) == ["kept"]
        assert (await store.digests()).count == 1
        assert (await calls.put(store, "name", streamed(data))).outcome is Outcome.CREATED
        assert await content(store, "name") == data

    @pytest.mark.parametrize("write", ["delete", "replace", "remove"])
    async def test_a_read_under_way_never_gives_wrong_bytes(
        self, store: BlobStore, write: str
    ) -> None:
        size = min(6 * MIB, store.capabilities.largest)
        data = noise(size)
        await calls.put(store, "name", Bytes(data), stamp=at(1))
        pieces = aiter((await store.get("name")).payload)
        got = bytes(await anext(pieces))
        if write == "delete":
            await calls.delete(store, "name", stamp=at(2))
        elif write == "replace":
            await calls.put(store, "name", Bytes(noise(size, 1)), stamp=at(2), kind=Kind.MANIFEST)
        else:
            assert await calls.remove(store, "name", if_stamp=at(1))
        try:
            async for piece in pieces:
                got += bytes(piece)
        except (Corrupt, Unavailable):
            assert data.startswith(got)
        else:
            assert got == data

    async def test_a_read_may_be_abandoned(self, store: BlobStore) -> None:
        data = noise(min(6 * MIB, store.capabilities.largest))
        await calls.put(store, "name", Bytes(data))
        for _ in range(20):
            async for piece in (await store.get("name")).payload:
                assert data.startswith(bytes(piece))
                break
        assert await content(store, "name") == data

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
