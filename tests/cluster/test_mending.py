"""What a read missed is made behind its answer: as it was, checked, and never against a delete."""

import asyncio
import random

import pytest

from dolmen.cluster.breaker import Breaker
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.manifest import CHUNK
from dolmen.cluster.mending import AGAIN, WAITING, Lack, Mending
from dolmen.cluster.objects import Objects
from dolmen.errors import Full, NotFound
from dolmen.names import checksum_of, chunk_name, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.stamps import format_stamp
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore

DATA = b"data"
NAME = chunk_name(DATA)


def made(count=3, name=NAME, **numbers):
    """A cluster, and its members in the order in which a name is placed."""
    members = [Member(f"m{number}", FaultyStore(MemoryStore())) for number in range(count)]
    cluster = Cluster([make_group("g", members, volatile=True, **numbers)])
    return cluster, [member.store for member in cluster.placement.of(partition_of(name)).order]


async def mended(cluster):
    async with asyncio.timeout(10):
        while cluster.mending.under_way:
            await asyncio.sleep(0)
    made = cluster.mending
    return made.repaired, made.failed, made.dropped


async def read(store, name=NAME):
    return bytes(await read_whole((await store.get(name)).payload))


@pytest.mark.parametrize("kind", [Kind.BLOB, Kind.MANIFEST])
async def test_a_copy_that_is_missing_where_it_should_be_is_made_as_it_is(kind):
    cluster, (first, second, third) = made()
    name = "a" * 64 if kind is Kind.MANIFEST else NAME
    first, second, third = (m.store for m in cluster.placement.of(partition_of(name)).order)
    await calls.put(third, name, Bytes(DATA), stamp=7, kind=kind)
    assert await read(cluster, name) == DATA
    assert await mended(cluster) == (2, 0, 0)
    for store in (first, second):
        info = await store.stat(name)
        assert (info.stamp, info.kind) == (7, kind)
        assert await read(store, name) == DATA


async def test_a_copy_that_was_deleted_before_is_made_again():
    cluster, (first, second, _third) = made()
    await calls.delete(first, NAME, stamp=6)
    await calls.put(second, NAME, Bytes(DATA), stamp=7)
    await cluster.get(NAME)
    assert await mended(cluster) == (1, 0, 0)
    assert (await first.stat(NAME)).stamp == 7


async def test_a_stale_copy_is_never_made_anew():
    cluster, (first, second, third) = made()
    await calls.delete(first, NAME, stamp=8)
    await calls.put(second, NAME, Bytes(DATA), stamp=7)
    with pytest.raises(NotFound):
        await cluster.get(NAME)
    assert await mended(cluster) == (0, 0, 0)
    with pytest.raises(NotFound):
        await calls.current(third, NAME)


async def test_only_who_should_hold_it_gets_a_copy():
    cluster, stores = made(4, copies=2)
    await calls.put(stores[3], NAME, Bytes(DATA), stamp=7)
    await cluster.get(NAME)
    assert await mended(cluster) == (2, 0, 0)
    assert [("put", NAME) in store.calls for store in stores] == [True, True, False, True]


async def test_the_answer_does_not_wait_for_it():
    cluster, (first, second, _third) = made()
    await calls.put(second, NAME, Bytes(DATA), stamp=7)
    going = asyncio.Event()

    async def pause(method, _name):
        if method == "put":
            await going.wait()

    first.pause = pause
    assert await read(cluster) == DATA
    assert cluster.mending.under_way == 1
    going.set()
    assert await mended(cluster) == (1, 0, 0)


async def test_a_delete_that_comes_first_stands():
    cluster, (first, second, third) = made()
    await calls.put(second, NAME, Bytes(DATA), stamp=7)
    going = asyncio.Event()

    async def pause(method, _name):
        if method == "put":
            await going.wait()

    first.pause = pause
    await cluster.get(NAME)
    while ("put", NAME) not in first.calls:
        await asyncio.sleep(0)
    await calls.delete(cluster, NAME)
    going.set()
    assert await mended(cluster) == (0, 0, 0)
    for store in (first, second, third):
        assert (await calls.current(store, NAME)).kind == Kind.TOMBSTONE


@pytest.mark.parametrize("stamp", [5, 7, 9])
@pytest.mark.parametrize("wrong", [b"wrong", b"other", b"fault", b"false"])
async def test_a_wrong_copy_its_server_believes_in_is_made_anew(stamp, wrong):
    cluster, (first, second, _third) = made()
    await calls.put(first, NAME, Bytes(wrong), stamp=stamp)
    await calls.put(second, NAME, Bytes(DATA), stamp=7)
    assert await read(cluster) == DATA
    assert await mended(cluster) == (1, 0, 0)
    assert await read(first) == DATA
    info = await first.stat(NAME)
    assert info.stamp == max(stamp, 7)
    assert info.checksum == checksum_of(DATA)


async def test_a_copy_that_was_spoiled_on_its_way_is_left_alone():
    cluster, (first, second, _third) = made()
    for store in (first, second):
        await calls.put(store, NAME, Bytes(DATA), stamp=7)
    first.calls.clear()
    first.script("get", Fault.WRONG)
    assert await read(cluster) == DATA
    assert await mended(cluster) == (0, 0, 0)
    assert not {"put", "remove", "delete"} & {method for method, _ in first.calls}


async def test_what_was_wrong_and_deleted_meanwhile_stays_deleted():
    cluster, (first, second, third) = made()
    await calls.put(first, NAME, Bytes(b"wrong"), stamp=7)
    await calls.put(second, NAME, Bytes(DATA), stamp=7)
    going = asyncio.Event()

    async def pause(method, _name):
        if method == "remove":
            await going.wait()

    first.pause = pause
    await cluster.get(NAME)
    while ("remove", NAME) not in first.calls:
        await asyncio.sleep(0)
    await calls.delete(cluster, NAME)
    going.set()
    await mended(cluster)
    for store in (first, second, third):
        assert (await calls.current(store, NAME)).kind == Kind.TOMBSTONE


async def test_what_may_have_been_deleted_long_ago_does_not_spread():
    cluster, (first, second, third) = made()
    await calls.put(third, NAME, Bytes(DATA), stamp=7)
    await first.note("horizon", format_stamp(7).encode())
    await second.note("horizon", format_stamp(6).encode())
    await cluster.get(NAME)
    assert await mended(cluster) == (1, 1, 0)
    with pytest.raises(NotFound):
        await first.stat(NAME)
    assert (await second.stat(NAME)).stamp == 7


async def test_an_emptied_server_that_does_not_know_of_old_deletes_is_left_to_repair():
    cluster, (first, second, third) = made()
    for store in (second, third):
        await calls.put(store, NAME, Bytes(DATA), stamp=7)
        await store.note("horizon", format_stamp(7).encode())
    await cluster.get(NAME)
    assert await mended(cluster) == (0, 1, 0)
    with pytest.raises(NotFound):
        await first.stat(NAME)


async def test_what_could_not_be_made_is_left_alone_for_a_while():
    passed = [0.0]
    breaker = Breaker(lambda: passed[0])
    cluster, _ = made()
    mending = cluster.mending = Mending(breaker, lambda: passed[0])
    place = cluster.placement.of(partition_of(NAME))
    first, second, _third = place.order
    await calls.put(second.store, NAME, Bytes(DATA), stamp=7)
    first.store.script("put", *[Full("no room")] * 2)
    lacks = [Lack(first, NotFound("no"))]
    for waited, failed in ((0, 1), (AGAIN / 2, 1), (AGAIN / 2, 2)):
        passed[0] += waited
        mending.offer(NAME, second, lacks, place)
        await mended(cluster)
        assert mending.failed == failed
        breaker.answered(first, wrote=True)


async def test_what_finds_the_queue_full_is_dropped():
    cluster, _ = made()
    place = cluster.placement.of(partition_of(NAME))
    first, second, _third = place.order
    for number in range(WAITING + 3):
        cluster.mending.offer(f"name{number}", second, [Lack(first, NotFound("no"))], place)
    assert cluster.mending.under_way == WAITING
    assert (await mended(cluster))[2] == 3


async def test_a_large_object_is_mended_chunk_by_chunk():
    members = [Member(f"m{number}", FaultyStore(MemoryStore())) for number in range(3)]
    cluster = Cluster([make_group("g", members, volatile=True, write_copies=1)])
    objects = Objects(cluster)
    data = random.Random(1).randbytes(2 * CHUNK + 5)
    stored = await objects.upload(Source(data))
    names = [info.name async for info in cluster.list()]
    assert len(names) == 4
    for name in names:  # the first who should have it has it no more, the second has
        first, second, _ = cluster.placement.of(partition_of(name)).order
        async for put in calls.put_many(second.store, first.store.get_many([name])):
            assert put
        await calls.remove(first.store, name, if_stamp=(await first.store.stat(name)).stamp)
    found = await read_whole((await objects.download(stored.id)).payload)
    assert bytes(found) == data
    assert await mended(cluster) == (4, 0, 0)
    for name in names:
        await cluster.placement.of(partition_of(name)).order[0].store.stat(name)


class Source:
    """A body that is all there."""

    def __init__(self, data):
        self.length = len(data)
        self._data = memoryview(data)

    async def receive_into(self, buffer):
        got = min(len(buffer), len(self._data))
        buffer[:got] = self._data[:got]
        self._data = self._data[got:]
        return got
