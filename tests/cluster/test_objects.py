"""Objects: small ones as one blob, large ones as chunks and a manifest."""

import asyncio
import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen.cluster.budget import Budget
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.manifest import CHUNK, decode
from dolmen.cluster.objects import Objects
from dolmen.cluster.upload import GRACE, upload
from dolmen.errors import BadContent, Corrupt, NoCopies, NotFound, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.spool import Spool
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore


class Source:
    """A body that arrives; `held` keeps back what comes after so many bytes until it is set."""

    def __init__(self, data, *, announced=True, fails_at=None, hold_at=None):
        self.data, self.at = data, 0
        self.length = len(data) if announced else None
        self.fails_at, self.hold_at = fails_at, hold_at
        self.go_on = asyncio.Event()

    async def receive_into(self, buffer):
        if self.hold_at is not None and self.at >= self.hold_at:
            await self.go_on.wait()
        await asyncio.sleep(0)
        if self.fails_at is not None and self.at + len(buffer) > self.fails_at:
            raise BadContent("the client went away")
        part = self.data[self.at : self.at + len(buffer)]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)


def made(count=3, *, budget=None, **numbers):
    stores = [FaultyStore(MemoryStore()) for _ in range(count)]
    members = [Member(f"m{number}", store) for number, store in enumerate(stores)]
    cluster = Cluster([make_group("g", members, volatile=True, **numbers)])
    return stores, Objects(cluster, budget=budget)


def data_of(size, seed=0):
    return random.Random(f"{size}/{seed}").randbytes(size)


async def fetched(objects, object_id, byte_range=None):
    blob = await objects.download(object_id, byte_range=byte_range)
    return b"".join([bytes(piece) async for piece in blob.payload])


SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 12_345]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", SIZES)
async def test_an_object_of_any_size_comes_back(size, announced):
    _stores, objects = made()
    data = data_of(size)
    stored = await objects.upload(Source(data, announced=announced))
    assert stored[:3] == (hashlib.sha256(data).hexdigest(), size, 2)
    assert await fetched(objects, stored.id) == data
    info = await objects.stat(stored.id)
    assert (info.size, info.kind) == (size, Kind.MANIFEST if size > CHUNK else Kind.BLOB)
    assert objects._budget.free == objects._budget.size


@settings(max_examples=40)
@given(st.data())
def test_any_range_of_a_large_object_is_that_part_of_it(drawn):
    size = 2 * CHUNK + 1000
    start = drawn.draw(st.integers(0, size - 1))
    stop = drawn.draw(st.integers(start + 1, min(size, start + CHUNK + 10)))
    asyncio.run(_check_range(size, start, stop))


async def _check_range(size, start, stop):
    stores, objects = made(1)
    data = data_of(size)
    stored = await objects.upload(Source(data))
    for store in stores:
        store.calls.clear()
    assert await fetched(objects, stored.id, (start, stop)) == data[start:stop]
    chunks = [
        name
        for store in stores
        for method, name in store.calls
        if method == "get" and name.startswith("chunk")
    ]
    assert len(chunks) == (stop - 1) // CHUNK - start // CHUNK + 1  # only those it touches


async def test_identical_parts_are_stored_once_and_uploads_sent_once():
    stores, objects = made(1)
    chunk = data_of(CHUNK)
    await objects.upload(Source(chunk * 3))
    names = [info.name async for info in stores[0].list()]
    assert len(names) == 2  # the chunk and the manifest
    stores[0].calls.clear()
    await objects.upload(Source(chunk * 3))
    assert [name[:5] for method, name in stores[0].calls if method == "put"].count("chunk") == 0


async def test_the_manifest_comes_last():
    stores, objects = made(1)
    data = data_of(3 * CHUNK)
    stored = await objects.upload(Source(data))
    puts = [name for method, name in stores[0].calls if method == "put"]
    assert puts[-1] == stored.id
    assert all(name.startswith("chunk") for name in puts[:-1])


@pytest.mark.parametrize("size", [1000, 3 * CHUNK])
async def test_a_body_that_breaks_off_leaves_no_object(size):
    _stores, objects = made()
    data = data_of(size)
    with pytest.raises(BadContent):
        await objects.upload(Source(data, fails_at=size - 10))
    with pytest.raises(NotFound):
        await objects.download(hashlib.sha256(data).hexdigest())
    assert objects._budget.free == objects._budget.size


@pytest.mark.parametrize("size", [1000, 2 * CHUNK])
async def test_content_without_the_id_announced_is_refused(size):
    _stores, objects = made()
    data = data_of(size)
    with pytest.raises(BadContent, match="nothing was stored"):
        await objects.upload(Source(data), expected_id="0" * 64)
    with pytest.raises(NotFound):
        await objects.stat(hashlib.sha256(data).hexdigest())


async def test_a_chunk_that_no_server_takes_fails_the_upload():
    stores, objects = made(2)
    for store in stores:
        store.down = True
    with pytest.raises(NoCopies):
        await objects.upload(Source(data_of(3 * CHUNK)))
    assert objects._budget.free == objects._budget.size


async def test_a_large_object_survives_any_server_but_one():
    stores, objects = made(3, write_copies=3)
    data = data_of(2 * CHUNK + 5)
    stored = await objects.upload(Source(data))
    for alone in stores:
        for store in stores:
            store.down = store is not alone
        assert await fetched(objects, stored.id) == data


async def test_a_missing_chunk_breaks_a_download_off_and_is_named():
    stores, objects = made(1)
    data = data_of(3 * CHUNK)
    stored = await objects.upload(Source(data))
    manifest = decode(await read_whole((await stores[0].get(stored.id)).payload))
    await calls.delete(stores[0], manifest.chunks[1])
    with pytest.raises(Unavailable, match=manifest.chunks[1]):
        await fetched(objects, stored.id)
    assert objects._budget.free == objects._budget.size


async def test_a_download_that_is_given_up_gives_its_budget_back():
    _stores, objects = made(1)
    stored = await objects.upload(Source(data_of(4 * CHUNK)))
    blob = await objects.download(stored.id)
    pieces = aiter(blob.payload)
    await anext(pieces)
    assert objects._budget.free < objects._budget.size
    await pieces.aclose()
    assert objects._budget.free == objects._budget.size


async def test_a_download_cancelled_amid_its_clean_up_gives_its_budget_back(monkeypatch):
    _stores, objects = made(1)
    stored = await objects.upload(Source(data_of(4 * CHUNK)))
    download = await objects.download(stored.id)
    get, asked = objects.cluster.get, []

    async def all_but_the_first_never_come(name):
        asked.append(name)
        if len(asked) > 1:
            try:
                await asyncio.Event().wait()
            finally:  # giving up takes a while
                for _ in range(5):
                    await asyncio.sleep(0)
        return await get(name)

    monkeypatch.setattr(objects.cluster, "get", all_but_the_first_never_come)
    pieces = aiter(download.payload)
    await anext(pieces)
    closing = asyncio.create_task(pieces.aclose())
    for _ in range(3):
        await asyncio.sleep(0)
    assert objects._budget.free < objects._budget.size
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert objects._budget.free == objects._budget.size


async def test_an_upload_cancelled_amid_its_clean_up_gives_its_budget_back():
    _stores, objects = made(1)
    source = Source(data_of(4 * CHUNK), fails_at=3 * CHUNK)
    uploading = asyncio.create_task(objects.upload(source))
    while source.at < 3 * CHUNK:
        await asyncio.sleep(0)
    for _ in range(20):
        uploading.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(uploading, return_exceptions=True)
    assert objects._budget.free == objects._budget.size


async def test_slow_uploads_never_keep_others_from_going_on():
    _stores, objects = made(1, budget=Budget(2 * CHUNK))
    slow = [Source(data_of(2 * CHUNK, seed), hold_at=CHUNK // 2) for seed in range(8)]
    waiting = [asyncio.create_task(objects.upload(source)) for source in slow]
    await asyncio.sleep(0)
    quick = data_of(3 * CHUNK)
    assert (await objects.upload(Source(quick))).size == len(quick)
    for source in slow:
        source.go_on.set()
    for source, stored in zip(slow, await asyncio.gather(*waiting), strict=True):
        assert await fetched(objects, stored.id) == source.data
    assert objects._budget.free == objects._budget.size


async def test_slow_readers_never_keep_others_from_going_on():
    _stores, objects = made(1, budget=Budget(4 * CHUNK))
    data = data_of(3 * CHUNK + 1000)
    stored = await objects.upload(Source(data))
    slow = [aiter((await objects.download(stored.id)).payload) for _ in range(8)]
    first = [bytes(await anext(pieces)) for pieces in slow]
    held_up = Source(data_of(2 * CHUNK), hold_at=CHUNK // 2)
    uploading = asyncio.create_task(objects.upload(held_up))
    other = data_of(2 * CHUNK, 1)
    assert await fetched(objects, stored.id) == data
    assert await fetched(objects, (await objects.upload(Source(other))).id) == other
    for begun, pieces in zip(first, slow, strict=True):
        assert begun + b"".join([bytes(piece) async for piece in pieces]) == data
    held_up.go_on.set()
    await uploading
    assert objects._budget.free == objects._budget.size


@pytest.mark.parametrize("budget", [4 * CHUNK, 40 * CHUNK])
async def test_pieces_stay_as_they_are_while_somebody_holds_them(budget):
    _stores, objects = made(1, budget=Budget(budget))
    datas = [data_of(4 * CHUNK, seed) for seed in range(3)]
    ids = [(await objects.upload(Source(data))).id for data in datas]
    pieces = [
        [piece async for piece in (await objects.download(object_id)).payload] for object_id in ids
    ]
    for data, held in zip(datas, pieces, strict=True):
        assert b"".join(held) == data


async def test_what_was_put_aside_is_checked_again(monkeypatch):
    _stores, objects = made(1, budget=Budget(CHUNK))
    stored = await objects.upload(Source(data_of(CHUNK)))
    large = await upload(objects.cluster, Source(data_of(2 * CHUNK)), Budget())
    assert (await fetched(objects, stored.id)) == data_of(CHUNK)
    spooled = Spool.append
    monkeypatch.setattr(Spool, "append", lambda self, data: spooled(self, bytes(len(data))))
    with pytest.raises(Corrupt):
        await fetched(objects, large.id)
    assert objects._budget.free == objects._budget.size


async def test_an_upload_that_takes_long_raises_its_chunks_again_before_it_is_answered():
    stores, objects = made(1)
    times = iter([0.0, GRACE / 2 + 1])
    data = data_of(2 * CHUNK)
    stored = await upload(objects.cluster, Source(data), Budget(), now=lambda: next(times))
    touched = [name for method, name in stores[0].calls if method == "touch"]
    manifest = decode(await read_whole((await stores[0].get(stored.id)).payload))
    assert touched[-2:] == list(manifest.chunks)


async def test_a_whole_blob_under_an_object_id_is_the_object():
    stores, objects = made(2)
    data = data_of(2 * CHUNK)
    object_id = hashlib.sha256(data).hexdigest()
    await calls.put(stores[0], object_id, Bytes(data), stamp=5)
    assert await fetched(objects, object_id) == data
    await objects.upload(Source(data))  # now a manifest, newer
    assert (await objects.stat(object_id)).kind == Kind.MANIFEST
    assert await fetched(objects, object_id) == data


async def test_a_deleted_object_is_gone_and_can_come_back():
    _stores, objects = made()
    data = data_of(CHUNK + 1)
    stored = await objects.upload(Source(data))
    await objects.delete(stored.id)
    with pytest.raises(NotFound):
        await objects.download(stored.id)
    await objects.upload(Source(data))
    assert await fetched(objects, stored.id) == data


async def test_where_the_copies_are_is_told():
    _stores, objects = made(3)
    stored = await objects.upload(Source(b"data"))
    told = await objects.locate(stored.id)
    assert (told["copies"], told["wanted"], told["degraded"]) == (2, 3, True)
    assert sorted(server["state"] for server in told["servers"]) == ["absent", "blob", "blob"]


async def test_an_object_known_by_its_id_is_renewed_without_its_bytes():
    _stores, objects = made()
    data = data_of(2 * CHUNK)
    stored = await objects.upload(Source(data))
    before = (await objects.stat(stored.id)).stamp
    again = await objects.renew(stored.id, b"")
    assert (again.size, again.copies) == (2 * CHUNK, 2)
    assert (await objects.stat(stored.id)).stamp > before
    with pytest.raises(NotFound):
        await objects.renew("0" * 64, b"")


async def test_an_object_renewed_beside_a_delete_from_a_clock_ahead_outlasts_it():
    _stores, objects = made()
    stored = await objects.upload(Source(b"data"))
    cluster = objects.cluster
    order = cluster.placement.of(partition_of(stored.id)).order
    ahead = (await objects.stat(stored.id)).stamp + (600_000 << 16)
    await calls.delete(order[1].store, stored.id, stamp=ahead)  # the first could not be asked then
    await objects.renew(stored.id, b"")
    assert (await order[0].store.stat(stored.id)).stamp > ahead
