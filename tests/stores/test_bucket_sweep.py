"""What nobody needs goes after a day, what somebody needs stays; ages; numbers of requests."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen.errors import NotFound, OutcomeUnknown, Unavailable
from dolmen.metadata import encode
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes, Stream
from dolmen.record import Kind
from dolmen.store import BlobInfo
from dolmen.stores import bucket_client, bucket_uploads, open_store
from dolmen.stores.bucket import BucketStore
from dolmen.stores.bucket_client import Client, Found
from dolmen.stores.bucket_layout import PART, head_path, heads_of
from dolmen.stores.bucket_uploads import GRACE, sweep_if_due
from dolmen.testing import calls
from dolmen.testing.conformance.material import at, content, names, noise
from engines.buckets import Later, everything, opened

SMALL, LARGE = noise(1000), noise(100_000)
LONG = encode([(b"x-note", bytes(200))])  # with it, data above 64 KiB is in parts
DAY = GRACE + 60
"""A day, and what the server's clock may go on while the test runs."""


@pytest.fixture
def later():
    return Later()


@pytest.fixture(params=["rclone", "moto", "azurite", "google"])
def url(request):
    found: str = request.getfixturevalue(request.param).url(f"sweep{os.urandom(8).hex()}")
    return found


@pytest.fixture
async def store(rclone, later):
    """On one server: what holds there does not depend on it."""
    store = opened(rclone.url(os.urandom(8).hex()), later)
    yield store
    await store.aclose()


async def test_what_was_outranked_goes_a_day_later(url, later):
    store = opened(url, later)
    await calls.put(store, "kept", Bytes(LARGE), stamp=at(1), meta=LONG)
    await calls.put(store, "touched", Bytes(LARGE), stamp=at(1), meta=LONG)
    await calls.touch(store, "touched", stamp=at(2), checksum=checksum_of(LARGE), meta=LONG)
    await calls.put(store, "replaced", Bytes(LARGE), stamp=at(1), meta=LONG)
    await calls.put(store, "replaced", Bytes(noise(100_000, 1)), stamp=at(2), meta=LONG)
    await calls.put(store, "deleted", Bytes(LARGE), stamp=at(1), meta=LONG)
    await calls.delete(store, "deleted", stamp=at(2))
    everywhere = await everything(store._client)
    assert list(map(len, everywhere)) == [7, 6]

    await sweep_if_due(store._client)
    assert await everything(store._client) == everywhere

    later.by = DAY
    before = [info async for info in calls.listing(store, tombstones=True)]
    await sweep_if_due(store._client)
    assert list(map(len, await everything(store._client))) == [4, 3]
    assert [info async for info in calls.listing(store, tombstones=True)] == before
    assert await content(store, "kept") == await content(store, "touched") == LARGE
    assert await content(store, "replaced") == noise(100_000, 1)
    with pytest.raises(NotFound) as caught:
        await store.get("deleted")
    assert caught.value.stamp == at(2)
    await store.aclose()


async def test_an_upload_that_was_given_up_goes_a_day_later(store, later):
    async def stops():
        yield noise(PART + 5)
        await asyncio.Event().wait()  # for ever

    put = asyncio.ensure_future(calls.put(store, "name", Stream(2 * PART, stops)))
    while not (left := await everything(store._client))[1]:
        await asyncio.sleep(0)
    put.cancel()
    await asyncio.gather(put, return_exceptions=True)
    await sweep_if_due(store._client)
    assert await everything(store._client) == left
    later.by = DAY
    await sweep_if_due(store._client)
    assert await everything(store._client) == ([], [])


async def test_uploads_refused_leave_nothing_at_once(store):
    await calls.delete(store, "name", stamp=at(2))
    assert (await calls.put(store, "name", Bytes(LARGE), stamp=at(1), meta=LONG)).stamp == at(2)
    assert (await everything(store._client))[1] == []


@pytest.mark.parametrize("moment", ["between parts", "before the head", "during the head"])
async def test_a_write_that_took_so_long_that_the_sweep_may_be_near_is_not_acknowledged(
    store, later, moment, monkeypatch
):
    async def slow():
        yield noise(PART)
        if moment == "between parts":
            while not (await everything(store._client))[1]:
                await asyncio.sleep(0)
            later.by = GRACE / 2
        yield b"rest"

    put = Client.put

    async def late(self, path, data, **options):
        await put(self, path, data, **options)
        if "!/p." not in path and moment == "during the head":
            later.by = GRACE / 2
        return True

    look = store._look

    async def looks(name):
        if moment == "before the head":
            later.by = GRACE / 2
        return await look(name)

    monkeypatch.setattr(Client, "put", late)
    monkeypatch.setattr(store, "_look", looks)
    error = OutcomeUnknown if moment == "during the head" else Unavailable
    with pytest.raises(error):
        await calls.put(store, "name", Stream(PART + 4, slow))
    monkeypatch.undo()
    if moment != "during the head":
        assert await everything(store._client) == ([], [])


async def test_writers_sweepers_and_time_together_lose_nothing_acknowledged(rclone, later):
    """Several stores on one bucket write, touch, break off and sweep; uploads take days."""
    rng = random.Random(1)
    url = rclone.url(os.urandom(8).hex())
    stores = [opened(url, later) for _ in range(3)]
    blobs = {f"n{number}": noise(PART + number, number) for number in range(1, 5)}
    acknowledged: Counter[str] = Counter()

    async def slow(data):
        yield data[:PART]
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0.05)  # some part may be there by now, or not
            later.by += rng.random() * GRACE / 2
            await sweep_if_due(rng.choice(stores)._client)
        yield data[PART:]

    async def one(number):
        store, name = rng.choice(stores), rng.choice(list(blobs))
        data, stamp = blobs[name], at(number)
        write = rng.randrange(4)
        with suppress(NotFound, Unavailable, OutcomeUnknown):
            if write == 0:
                answer = await calls.touch(store, name, stamp=stamp, checksum=checksum_of(data))
            elif write == 1:
                await sweep_if_due(store._client)
                return
            else:
                payload = Stream(len(data), lambda: slow(data))
                answer = await calls.put(store, name, payload, stamp=stamp)
            acknowledged[name] = max(acknowledged[name], answer.stamp)

    async def broken_off(number):
        with suppress(TimeoutError):
            await asyncio.wait_for(one(number), rng.random() if number % 5 == 0 else 60)

    for first in range(0, 60, 6):
        await asyncio.gather(*(broken_off(number) for number in range(first, first + 6)))
        later.by += rng.random() * GRACE
    for _ in range(2):
        for name, stamp in acknowledged.items():
            assert (await stores[0].stat(name)).stamp >= stamp
            assert await content(stores[1], name) == blobs[name]
        later.by += DAY
        await sweep_if_due(stores[2]._client)
    assert acknowledged
    there = len(await names(stores[0].list()))
    assert list(map(len, await everything(stores[0]._client))) == [there, 2 * there]


async def test_a_removal_that_is_cut_off_brings_nothing_back(store, monkeypatch):
    await calls.put(store, "name", Bytes(b"old"), stamp=at(1))
    await calls.put(store, "name", Bytes(b"new"), stamp=at(2))
    await calls.delete(store, "name", stamp=at(3))
    delete, deleted = store._client.delete, list[int]()

    async def dies(paths):
        deleted.append(len(paths))
        if len(deleted) == 2:
            raise Unavailable("the machine went down")
        await delete(paths)

    monkeypatch.setattr(store._client, "delete", dies)
    with pytest.raises(Unavailable):
        await calls.remove(store, "name", if_stamp=at(3))
    monkeypatch.undo()
    assert deleted == [2, 1]
    with pytest.raises(NotFound) as caught:
        await store.get("name")
    assert caught.value.stamp == at(3)


async def test_ages_are_those_of_the_bucket(store, later):
    for name in ("name", "touched"):
        await calls.put(store, name, Bytes(b"one"), stamp=at(1))
    assert not await calls.remove(store, "name", if_stamp=at(1), min_age=60)
    later.by = 3600
    assert not await calls.remove(store, "name", if_stamp=at(1), min_age=3660)
    assert await calls.remove(store, "name", if_stamp=at(1), min_age=3600 - 5)
    now = await store._client.now(fresh=True) - later.by
    assert 0 <= now - (await store.stat("touched")).arrived < 60


async def test_only_one_of_several_processes_sweeps(rclone, store, later):
    await sweep_if_due(store._client)
    await calls.put(store, "name", Bytes(b"one"), stamp=at(1))
    await calls.put(store, "name", Bytes(b"two"), stamp=at(2))
    later.by = DAY
    await asyncio.gather(*(sweep_if_due(store._client) for _ in range(3)))
    assert list(map(len, await everything(store._client))) == [1, 0]


async def test_an_open_store_sweeps_by_itself_and_again_where_it_failed(
    rclone, monkeypatch, caplog
):
    monkeypatch.setattr(bucket_uploads, "FIRST", 0)
    monkeypatch.setattr(bucket_uploads, "_NEXT", 0.001)
    tries, again = [], asyncio.Event()

    async def fails_first(client, paths):
        if paths == ["swept"]:
            await delete(client, paths)
            return
        tries.append(paths)
        if len(tries) == 1:
            raise Unavailable("for the test")
        again.set()

    delete = Client.delete
    monkeypatch.setattr(Client, "delete", fails_first)
    store = await open_store(rclone.url("opened"))
    assert isinstance(store, BucketStore)
    await again.wait()
    assert "outdated data could not be deleted: for the test" in caplog.text
    await store.aclose()


# Heads: what a key says, and its order.

infos = st.builds(
    BlobInfo,
    name=st.text("AZaz09._-", max_size=127).map("n".__add__),
    size=st.integers(0, 1 << 40),
    kind=st.sampled_from([Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE]),
    stamp=st.integers(0, (1 << 64) - 2),
    checksum=st.binary(min_size=16, max_size=16),
    metadata=st.binary(max_size=200).map(lambda value: encode([(b"x", value)])) | st.just(b""),
)


@given(one=infos, other=infos)
def test_a_key_says_what_it_was_made_of_and_sorts_as_names_do(one, other):
    path, apart = head_path(one, os.urandom(16).hex())
    assert len(path) < 400
    assert all(len(word) < 255 for word in path.split("/"))
    [head] = heads_of([Found(path, one.arrived)])
    assert head.info(apart or head.metadata) == one
    assert head.rank == one.rank
    within, against = (head_path(info, "0" * 32)[0].split("/", 2)[2] for info in (one, other))
    if one.name != other.name:
        assert (within < against) == (one.name < other.name)
    elif one.stamp != other.stamp:
        assert (within < against) == (one.stamp < other.stamp)


def test_the_highest_rank_is_current_and_of_one_write_twice_the_sound_one():
    def head(stamp, kind=Kind.BLOB, meta=b""):
        info = BlobInfo("name", 4, kind, stamp, bytes(16), meta)
        return head_path(info, os.urandom(16).hex())[0]

    rising = [
        head(1),
        head(1, meta=encode([(b"a", b"b")])),
        head(1, Kind.MANIFEST),
        head(1, Kind.TOMBSTONE),
        head(2),
        head(2),
    ]
    foreign = ["blobs/0000/readme.txt", "blobs/x", rising[0][:-1] + "?", rising[0] + "/more", "!"]
    objects = [Found(path, 0) for path in [*reversed(rising), rising[-1] + "!", *foreign]]
    found = heads_of(objects)
    assert [one.path for one in found[:4]] == rising[:4]
    assert [one.damaged for one in found[4:]] == [True, False]


# How many requests each call takes: users wait for them, and pay for them.


async def test_how_many_requests_a_call_takes(moto, monkeypatch):
    store = opened(moto.url("requests"))
    requests = 0
    asking = Client._asking

    def counting(self, *, wrote=False):
        nonlocal requests
        requests += 1
        return asking(self, wrote=wrote)

    monkeypatch.setattr(Client, "_asking", counting)

    async def count(call):
        before = requests
        await call
        return requests - before

    # The driver is asked once more behind the last page of a listing, and sends nothing.
    first, listed = 1, 2
    assert await count(calls.put(store, "small", Bytes(SMALL), stamp=at(1))) == first + 1
    assert await count(calls.put(store, "small", Bytes(SMALL), stamp=at(2))) == listed + 1
    assert await count(calls.put(store, "large", Bytes(LARGE), stamp=at(1))) == first + 1
    assert await count(calls.put(store, "parts", Bytes(bytes(PART + 1)))) == first + 3
    assert await count(store.get("parts", byte_range=(0, 1))) == first + 1
    assert await count(store.get("small")) == listed + 1
    assert await count(store.get("large", byte_range=(5, 6))) == listed + 1
    assert await count(store.stat("small")) == listed
    touch = calls.touch(store, "large", stamp=at(2), checksum=checksum_of(LARGE))
    assert await count(touch) == listed + 2
    assert await count(calls.delete(store, "small")) == listed + 1
    assert await count(calls.remove(store, "small", if_stamp=at(1))) == listed


async def test_a_listing_takes_a_request_a_page_and_few_partitions_one_each(moto, monkeypatch):
    monkeypatch.setattr(bucket_client, "PAGE", 20)
    store = opened(moto.url("listings"))
    chosen = sorted((f"n{number}" for number in range(50)), key=lambda n: (partition_of(n), n))
    await asyncio.gather(*(calls.delete(store, name, stamp=at(1)) for name in chosen))
    pages, asked = Client.pages, 0

    async def counting(self, folder, after=None):
        nonlocal asked
        asked += 1
        async for page in pages(self, folder, after):
            asked += len(page) == 20
            yield page

    monkeypatch.setattr(Client, "pages", counting)
    partitions = [partition_of(name) for name in chosen]
    for narrowed, wanted, requests in (
        ({}, chosen, 3),
        ({"after": chosen[31]}, chosen[32:], 1),
        ({"partitions": partitions[20:52]}, chosen[20:52], 30),
        ({"partitions": [0, 1, partitions[44]]}, chosen[44:45], 3),
        ({"partitions": partitions[:3], "after": chosen[0]}, chosen[1:3], 3),
        ({"partitions": partitions[:40], "after": chosen[2]}, chosen[3:40], 3),
    ):
        before = asked
        assert await names(calls.listing(store, tombstones=True, **narrowed)) == wanted
        assert asked - before == requests, narrowed
