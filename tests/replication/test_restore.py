"""An import ends with what the archive holds, in its place, and tells what it could not bring."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen.cluster.manifest import decode
from dolmen.cluster.placement import Placement
from dolmen.cluster.upload import GRACE
from dolmen.errors import BadContent, Corrupt, Full, Unavailable
from dolmen.names import chunk_name, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS
from dolmen.replication.restore import Restored, restore
from dolmen.stamps import format_stamp
from dolmen.store import Failed
from dolmen.stores.horizon import HORIZON, horizon_in
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore
from replication.archives import blob, exported, group_of, pieces, written
from replication.breaking_off import broken_off
from replication.test_export import add_object, everything, filled, nothing

FACTS = {"source": "somewhere", "horizon": "0" * 16}


async def imported(data: bytes, *stores, copies: int | None = None, **how) -> Restored:
    return await restore(pieces(data), group_of(*stores, copies=copies), pause=nothing, **how)


async def root(store) -> bytes:
    return (await store.digests()).root


async def test_an_empty_store_ends_with_the_same():
    source, destination = await filled(), MemoryStore()
    data, _ = await exported(source)
    restored = await imported(data, destination)
    assert await root(destination) == await root(source)
    assert (restored.complete, restored.source, restored.read) == (True, "here", len(data))
    report = restored.runs["a"]
    assert report.complete
    assert (report.copied, report.tombstones) == (42, 4)
    assert (restored.damaged.count, restored.lacking.count) == (0, 0)


async def test_again_it_writes_nothing():
    data, _ = await exported(await filled())
    destination = FaultyStore(MemoryStore())
    await imported(data, destination)
    destination.calls.clear()
    report = (await imported(data, destination)).runs["a"]
    assert (report.copied, report.tombstones, report.touched) == (0, 0, 0)
    assert not {method for method, _ in destination.calls} & {"put", "delete", "touch"}


async def test_what_is_newer_stays_and_what_is_older_goes():
    source, destination = await filled(), MemoryStore()
    data, _ = await exported(source)
    await calls.put(destination, "blob-7", Bytes(b"newer"))
    await calls.put(destination, "blob-8", Bytes(b"older"), stamp=3)
    await calls.put(destination, "blob-2", Bytes(b"deleted in the archive"), stamp=3)
    await calls.put(destination, "blob-9", Bytes(b"data 9"), stamp=3)
    await imported(data, destination)
    await calls.put(
        source, "blob-7", Bytes(b"newer"), stamp=(await destination.stat("blob-7")).stamp
    )
    assert await root(destination) == await root(source)


async def test_in_a_cluster_everything_goes_to_its_place():
    source, stores = await filled(), [MemoryStore() for _ in range(4)]
    data, _ = await exported(source)
    restored = await imported(data, *stores, copies=2)
    groups = group_of(*stores, copies=2)
    placement = Placement(groups)
    wanted = await everything(source)
    for member in groups[0].members:
        mine = {
            name: rank
            for name, rank in wanted.items()
            if member in placement.of(partition_of(name)).rightful
        }
        assert await everything(member.store) == mine
    assert sum(report.copied for report in restored.runs.values()) == 2 * 42


async def test_a_whole_cluster_moves_by_an_archive():
    one, two = await filled(), await filled()
    await calls.delete(two, "blob-20")
    data, _ = await exported(one, two)
    three, four = MemoryStore(), MemoryStore()
    await imported(data, three, four)
    assert await everything(three) == await everything(four) == await everything(one, two)


@settings(max_examples=40)
@given(st.integers(0, 400), st.integers(1, 3))
async def test_broken_off_anywhere_and_run_again_it_ends_the_same(after, count):
    source = await filled()
    data, _ = await exported(source)
    stores = [FaultyStore(MemoryStore()) for _ in range(count)]
    await broken_off(imported(data, *stores), stores, after=after)
    for store in stores:  # no object is seen without its chunks
        async for info in store.store.list():
            if info.kind == Kind.MANIFEST:
                manifest = await store.store.get(info.name)
                for chunk in decode(await read_whole(manifest.payload)).chunks:
                    assert await store.store.stat(chunk)
    await imported(data, *stores)
    for store in stores:
        assert await everything(store.store) == await everything(source)


async def test_a_manifest_waits_for_all_chunks():
    source = await filled()
    data, _ = await exported(source)
    order: list[str] = []
    destination = FaultyStore(MemoryStore())

    async def note(method: str, name: str) -> None:
        if method == "put":
            order.append(name)

    destination.pause = note
    await imported(data, destination)
    manifests = [order.index(name) for name in ("one", "two")]
    chunks = [at for at, name in enumerate(order) if name.startswith("chunk")]
    assert max(chunks) < min(manifests)


async def test_chunks_that_stood_unnamed_are_young_again():
    seconds = 1_000_000.0
    destination = MemoryStore(now=lambda: seconds)
    source = await filled()
    data, _ = await exported(source)
    async for info in calls.listing(source, prefix="chunk"):
        found = await source.get(info.name)
        await calls.put(destination, info.name, found.payload, stamp=info.stamp)
    seconds += 10 * GRACE
    await imported(data, destination)
    async for info in calls.listing(destination, prefix="chunk"):
        assert info.arrived == seconds


async def test_a_manifest_whose_chunk_was_collected_meanwhile_waits_for_the_next_import():
    source = await filled()
    data, _ = await exported(source)
    destination = FaultyStore(MemoryStore())
    lost = min([info.name async for info in calls.listing(source, prefix="chunk")])
    found = await source.get(lost)
    await calls.put(destination, lost, found.payload, stamp=found.info.stamp)

    async def collect(method: str, name: str) -> None:
        if (method, name) == ("stat", lost):  # now that the import comes to the manifests
            await calls.remove(destination.store, lost, if_stamp=found.info.stamp)

    destination.pause = collect
    restored = await imported(data, destination)
    refused = restored.runs["a"].refused["ChunkMissing"]
    destination.pause = None
    for name, why in refused.examples:
        assert lost in why
        assert name not in await everything(destination.store)
    assert (await imported(data, destination)).runs["a"].complete
    assert await everything(destination.store) == await everything(source)


async def test_damage_is_told_and_all_else_brought():
    source = await filled()
    data = bytearray((await exported(source))[0])
    data[len(data) // 3] ^= 1
    destination = MemoryStore()
    restored = await imported(bytes(data), destination)
    assert restored.damaged.count == 1
    assert restored.complete
    assert len(await everything(destination)) == len(await everything(source)) - 1


async def test_an_end_that_is_missing_is_told():
    source = await filled()
    data, _ = await exported(source)
    restored = await imported(data[:-200], MemoryStore())
    assert not restored.complete
    assert "ends inside" in restored.ends or "cut short" in restored.ends


async def test_what_was_not_in_the_archive_is_told():
    data = await written(
        (EXPORT, FACTS), Failed("lost", Corrupt("damaged")), blob(1, 5), (MANIFESTS,), (END,)
    )
    restored = await imported(data, MemoryStore())
    assert restored.lacking.examples == [("lost", "lost: damaged")]
    assert restored.runs["a"].copied == 1


@pytest.mark.parametrize("data", [b"", b"hello" * 1_000])
async def test_what_is_no_archive_is_refused(data):
    with pytest.raises(BadContent, match="no archive"):
        await imported(data, MemoryStore())


async def test_a_large_blob_that_is_damaged_leaves_nothing():
    source = MemoryStore()
    await calls.put(source, "large", Bytes(random.Random(1).randbytes(6_000_000)))
    await calls.put(source, "small", Bytes(b"x"))
    data = bytearray((await exported(source))[0])
    data[3_000_000] ^= 1
    destination = MemoryStore()
    restored = await imported(bytes(data), destination)
    assert restored.damaged.examples[0][0] == "large"
    assert (await everything(destination)).keys() == {"small"}


async def test_a_large_blob_goes_to_every_server():
    source = MemoryStore()
    await calls.put(source, "large", Bytes(random.Random(1).randbytes(6_000_000)))
    data, _ = await exported(source)
    stores = [FaultyStore(MemoryStore()) for _ in range(3)]
    stores[1].script("put", Fault.LOST, Fault.UNAVAILABLE)
    await imported(data, *stores)
    for store in stores:
        assert await root(store.store) == await root(source)


async def test_a_server_that_fails_for_a_moment_is_asked_again():
    source = await filled()
    data, _ = await exported(source)
    destination = FaultyStore(MemoryStore())
    destination.at_random(random.Random(3), 0.05)
    await imported(data, destination)
    destination.at_random(random.Random(3), 0)
    assert await root(destination.store) == await root(source)


async def test_a_server_that_stays_away_ends_it_and_is_named():
    data, _ = await exported(await filled())
    stores = [FaultyStore(MemoryStore()) for _ in range(3)]
    stores[1].down = True
    with pytest.raises(Unavailable, match=r"^b: "):
        await imported(data, *stores)


async def test_a_full_server_refuses_what_needs_room_and_the_others_go_on():
    source = await filled()
    data, _ = await exported(source)
    stores = [FaultyStore(MemoryStore()) for _ in range(2)]
    stores[0].script("put", *[Full("no room")] * 1_000)
    restored = await imported(data, *stores)
    assert restored.runs["a"].refused["Full"].count == 42
    assert restored.runs["a"].tombstones == 4
    assert await root(stores[1].store) == await root(source)


async def test_what_may_have_been_deleted_since_is_refused_unless_asked_for():
    source, destination = MemoryStore(), MemoryStore()
    await calls.put(source, "old", Bytes(b"old"), stamp=5)
    await calls.put(source, "new", Bytes(b"new"), stamp=90)
    await calls.put(destination, "other", Bytes(b"x"), stamp=80)
    await destination.note(HORIZON, format_stamp(50).encode())
    data, _ = await exported(source)
    restored = await imported(data, destination)
    assert restored.runs["a"].refused["MayBeDeleted"].examples[0][0] == "old"
    assert (await everything(destination)).keys() == {"other", "new"}
    await imported(data, destination, rejoin=True)
    assert (await everything(destination)).keys() == {"other", "new", "old"}


async def test_an_empty_server_takes_over_what_was_forgotten_and_another_does_not():
    source, empty, other = MemoryStore(), MemoryStore(), MemoryStore()
    await calls.put(source, "old", Bytes(b"old"), stamp=5)
    await source.note(HORIZON, format_stamp(50).encode())
    await calls.put(other, "other", Bytes(b"x"), stamp=80)
    data, _ = await exported(source)
    await imported(data, empty, other)
    assert horizon_in(await empty.notes()) == 50
    assert horizon_in(await other.notes()) == 0
    assert "old" in await everything(empty)


async def test_where_the_first_mark_is_damaged_the_old_is_in_doubt():
    source, destination = MemoryStore(), MemoryStore()
    await calls.put(source, "old", Bytes(b"old"), stamp=5)
    await source.note(HORIZON, format_stamp(50).encode())
    await calls.put(destination, "other", Bytes(b"x"), stamp=80)
    await destination.note(HORIZON, format_stamp(50).encode())
    data = bytearray((await exported(source))[0])
    data[20] ^= 1
    restored = await imported(bytes(data), destination)
    assert restored.runs["a"].refused["MayBeDeleted"].count == 1


async def test_two_archives_one_after_the_other_are_both_brought():
    one, two = await filled(), MemoryStore()
    await calls.put(two, "more", Bytes(b"more"))
    await add_object(two, "three", [b"1", b"2"])
    destination = MemoryStore()
    for source in (one, two):
        await imported((await exported(source))[0], destination)
    assert await everything(destination) == await everything(one, two)
    assert chunk_name(b"1") in await everything(destination)


async def test_it_can_be_cancelled():
    data, _ = await exported(await filled())
    destination = FaultyStore(MemoryStore())
    held = asyncio.Event()

    async def hold(method: str, _name: str) -> None:
        if method == "put":
            held.set()
            await asyncio.Event().wait()

    destination.pause = hold
    task = asyncio.create_task(imported(data, destination))
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
