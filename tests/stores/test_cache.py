"""A cache: the one suite, and that nothing stale is ever read from it."""

import pytest

from dolmen.errors import BadSetting, Corrupt, NotFound, Unavailable
from dolmen.payload import Bytes, read_whole
from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.cache import LARGEST, CacheStore
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.faulty import Fault, FaultyStore


class TestCache(Conformance):
    reopens = False

    async def make_store(self, place: Place) -> BlobStore:
        slow = MemoryStore(clock=Clock(place.time.wall), now=place.time.now)
        return CacheStore(MemoryStore(), slow, size=100_000)


@pytest.fixture
def fast():
    return FaultyStore(MemoryStore())


@pytest.fixture
def slow():
    return FaultyStore(MemoryStore())


async def content(store, name, **options):
    return bytes(await read_whole((await store.get(name, **options)).payload))


async def test_what_was_read_once_comes_out_of_the_fast_store(fast, slow):
    store = CacheStore(fast, slow)
    await calls.put(store, "a", Bytes(b"0123456789"), meta=b"")
    assert [await content(store, "a") for _ in range(3)] == [b"0123456789"] * 3
    assert await content(store, "a", byte_range=(2, 5)) == b"234"
    assert slow.calls.count(("get", "a")) == 1
    assert fast.calls.count(("get", "a")) == 3


async def test_what_others_deleted_or_replaced_is_not_read_any_more(fast, slow):
    store = CacheStore(fast, slow)
    await calls.put(store, "a", Bytes(b"one"))
    assert await content(store, "a") == b"one"
    await calls.delete(slow, "a")
    with pytest.raises(NotFound):
        await store.get("a")
    await calls.put(slow, "a", Bytes(b"two"))
    assert await content(store, "a") == b"two"
    assert await content(store, "a") == b"two"
    assert slow.calls.count(("get", "a")) == 2


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.CORRUPT, Fault.ROTTEN, Fault.WRONG])
async def test_a_fast_store_that_fails_or_lies_costs_only_time(fast, slow, fault):
    store = CacheStore(fast, slow)
    await calls.put(store, "a", Bytes(b"0123456789"))
    await store.get("a")
    fast.script("get", fault)
    assert await content(store, "a") == b"0123456789"
    fast.down = True
    assert await content(store, "a") == b"0123456789"
    await calls.put(store, "b", Bytes(b"b"))
    assert await content(store, "b") == b"b"
    await calls.delete(store, "b")


async def test_a_slow_store_that_can_not_be_asked_is_told_as_it_is(fast, slow):
    store = CacheStore(fast, slow)
    await calls.put(store, "a", Bytes(b"a"))
    await store.get("a")
    slow.script("stat", Fault.UNAVAILABLE, Fault.CORRUPT)
    with pytest.raises(Unavailable):
        await store.get("a")
    with pytest.raises(Corrupt):
        await store.get("a")


async def test_it_keeps_what_was_used_last_within_its_size(fast, slow):
    store = CacheStore(fast, slow, size=30)
    for name in "abcd":
        await calls.put(store, name, Bytes(name.encode() * 10))
    for name in ("a", "b", "c", "a", "d"):  # d takes the room of b
        await store.get(name)
    held = {info.name: info.size async for info in fast.list()}
    assert held == {"a": 10, "c": 10, "d": 10}
    await calls.put(store, "large", Bytes(b"1" * 31))
    await store.get("large")
    assert {info.name async for info in fast.list()} == {"a", "c", "d"}


async def test_large_blobs_pass_by(fast, slow):
    store = CacheStore(fast, slow)
    data = bytes(LARGEST + 1)
    await calls.put(store, "a", Bytes(data))
    assert await content(store, "a") == data
    assert not [info async for info in fast.list()]


async def test_what_the_fast_store_held_before_is_known_and_within_the_size(fast, slow):
    store = CacheStore(fast, slow)
    for name in "abc":
        await calls.put(store, name, Bytes(name.encode() * 10))
        await store.get(name)
    store = CacheStore(fast, slow, size=20)
    await store.recall()
    held = {info.name async for info in fast.list()}
    assert len(held) == 2
    before = slow.calls.count(("get", min(held)))
    await store.get(min(held))
    assert slow.calls.count(("get", min(held))) == before


async def test_it_is_opened_by_its_url(tmp_path):
    store = await open_store(f"cache:?fast=memory:&slow=volume:{tmp_path}/v&size=10M")
    assert store._size == 10 << 20
    assert store.capabilities.durable
    await calls.put(store, "a", Bytes(b"a"))
    assert await content(store, "a") == b"a"
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "cache:",
        "cache:?fast=memory:",
        "cache:?fast=memory:&slow=memory:&size=much",
        "cache:?fast=memory:&slow=memory:&speed=1",
        "cache:?fast=nothing:&slow=memory:",
    ],
)
async def test_a_url_that_is_none_is_explained(url):
    with pytest.raises(BadSetting, match=r"cache:\?fast=URL&slow=URL|names no store"):
        await open_store(url)
