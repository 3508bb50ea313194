"""Objects: small ones as one blob, large ones as chunks and a manifest."""

import asyncio
import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conftest import in_order, made
from dolmen.cluster.budget import Budget
from dolmen.cluster.manifest import CHUNK, ChunkNames, Manifest, decode
from dolmen.cluster.objects import Objects
from dolmen.cluster.upload import YOUNG, Uploads
from dolmen.errors import BadContent, Corrupt, NoCopies, NotFound, Unavailable
from dolmen.names import chunk_name
from dolmen.payload import Bytes, Stream, read_whole
from dolmen.record import Kind
from dolmen.store import NO_CHECKSUM, Blob
from dolmen.stores.base import Delegating
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault


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


def opened(count=3, **how):
    """The stores of a cluster, and the objects over it."""
    stores, cluster = made(count, **how)
    return stores, Objects(cluster)


def data_of(size, seed=0):
    return random.Random(f"{size}/{seed}").randbytes(size)


async def broken_off(objects, object_id):
    """How many bytes of an object came before it was broken off."""
    got = 0
    try:
        async for piece in (await objects.download(object_id)).payload:
            got += len(piece)
    except (Corrupt, Unavailable):
        return got
    raise AssertionError("all of it was handed out")


async def fetched(objects, object_id, byte_range=None):
    blob = await objects.download(object_id, byte_range=byte_range)
    return b"".join([bytes(piece) async for piece in blob.payload])


async def all_given_back(objects):
    for _ in range(50):  # what was cancelled takes some turns of the loop to end
        await asyncio.sleep(0)
    assert objects.cluster.budget.free == objects.cluster.budget.size


SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 12_345]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", SIZES)
async def test_an_object_of_any_size_comes_back(size, announced):
    _stores, objects = opened()
    data = data_of(size)
    stored = await objects.upload(Source(data, announced=announced))
    assert stored[:3] == (hashlib.sha256(data).hexdigest(), size, 2)
    assert await fetched(objects, stored.id) == data
    info = await objects.stat(stored.id)
    assert (info.size, info.kind) == (size, Kind.MANIFEST if size > CHUNK else Kind.BLOB)
    await all_given_back(objects)


def test_any_range_of_a_large_object_is_that_part_of_it():
    size = 2 * CHUNK + 1000
    data = data_of(size)

    async def uploaded():
        stores, objects = opened(1)
        return stores[0], objects, (await objects.upload(Source(data))).id

    with asyncio.Runner() as runner:
        store, objects, object_id = runner.run(uploaded())

        @settings(max_examples=40)
        @given(st.integers(0, size - 1), st.integers(1, CHUNK + 10))
        def check(start, length):
            stop = min(start + length, size)
            store.calls.clear()
            got = runner.run(fetched(objects, object_id, (start, stop)))
            assert got == data[start:stop]
            chunks = [name for method, name in store.calls if name.startswith("chunk")]
            # Only those it touches.
            assert len(chunks) == (stop - 1) // CHUNK - start // CHUNK + 1

        check()


async def test_identical_parts_are_stored_once_and_uploads_sent_once():
    stores, objects = opened(1)
    chunk = data_of(CHUNK)
    stored = await objects.upload(Source(chunk * 3))
    names = [info.name async for info in stores[0].list()]
    assert len(names) == 2  # the chunk and the manifest, which comes last
    assert [name for method, name in stores[0].calls if method == "put"][-1] == stored.id
    stores[0].calls.clear()
    await objects.upload(Source(chunk * 3))
    assert [name[:5] for method, name in stores[0].calls if method == "put"].count("chunk") == 0


@pytest.mark.parametrize("size", [1000, 3 * CHUNK])
async def test_a_body_that_breaks_off_leaves_no_object(size):
    _stores, objects = opened()
    data = data_of(size)
    with pytest.raises(BadContent):
        await objects.upload(Source(data, fails_at=size - 10))
    with pytest.raises(NotFound):
        await objects.download(hashlib.sha256(data).hexdigest())
    await all_given_back(objects)


@pytest.mark.parametrize("size", [1000, 2 * CHUNK])
async def test_content_without_the_id_announced_is_refused(size):
    _stores, objects = opened()
    data = data_of(size)
    with pytest.raises(BadContent, match="nothing was stored"):
        await objects.upload(Source(data), expected_id="0" * 64)
    with pytest.raises(NotFound):
        await objects.stat(hashlib.sha256(data).hexdigest())


async def test_a_missing_chunk_breaks_a_download_off_and_is_named():
    stores, objects = opened(1)
    data = data_of(3 * CHUNK)
    stored = await objects.upload(Source(data))
    manifest = decode(await read_whole((await stores[0].get(stored.id)).payload))
    await calls.delete(stores[0], manifest.chunks[1])
    with pytest.raises(Unavailable, match=manifest.chunks[1]):
        await fetched(objects, stored.id)
    await all_given_back(objects)


async def test_a_download_that_is_given_up_gives_its_budget_back():
    _stores, objects = opened(1)
    stored = await objects.upload(Source(data_of(4 * CHUNK)))
    blob = await objects.download(stored.id)
    pieces = aiter(blob.payload)
    await anext(pieces)
    assert objects.cluster.budget.free < objects.cluster.budget.size
    await pieces.aclose()
    await all_given_back(objects)


async def test_an_upload_cancelled_amid_its_clean_up_gives_its_budget_back():
    _stores, objects = opened(1)
    source = Source(data_of(4 * CHUNK), fails_at=3 * CHUNK)
    uploading = asyncio.create_task(objects.upload(source))
    while source.at < 3 * CHUNK:
        await asyncio.sleep(0)
    for _ in range(20):
        uploading.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(uploading, return_exceptions=True)
    await all_given_back(objects)


async def test_readers_and_uploads_wait_their_turn_when_the_budget_is_spent():
    _stores, objects = opened(1, budget=Budget(4 * CHUNK))
    data = data_of(3 * CHUNK + 1000)
    stored = await objects.upload(Source(data))
    slow = [aiter((await objects.download(stored.id)).payload) for _ in range(2)]
    first = [bytes(await anext(pieces)) for pieces in slow]
    held_up = Source(data_of(2 * CHUNK), hold_at=CHUNK // 2)
    uploading = asyncio.create_task(objects.upload(held_up))
    while not held_up.at:
        await asyncio.sleep(0)
    # What was fetched ahead for the slow ones made room; with all that they hold nothing is left.
    waiting = asyncio.create_task(fetched(objects, stored.id))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    held_up.go_on.set()
    await uploading
    assert await waiting == data
    for begun, pieces in zip(first, slow, strict=True):
        assert begun + b"".join([bytes(piece) async for piece in pieces]) == data
    await all_given_back(objects)


async def test_an_upload_holds_no_more_than_chunks_on_their_way():
    _stores, objects = opened(1, budget=Budget(CHUNK))
    data = data_of(5 * CHUNK + 5)
    for announced in (True, False):
        assert (await objects.upload(Source(data, announced=announced))).size == len(data)
    await all_given_back(objects)


async def test_pieces_stay_as_they_are_while_somebody_holds_them():
    _stores, objects = opened(1, budget=Budget(4 * CHUNK))
    datas = [data_of(4 * CHUNK, seed) for seed in range(3)]
    ids = [(await objects.upload(Source(data))).id for data in datas]
    pieces = [
        [piece async for piece in (await objects.download(object_id)).payload] for object_id in ids
    ]
    for data, held in zip(datas, pieces, strict=True):
        assert b"".join(held) == data


class Streaming(Delegating):
    """A store that hands out no payload whole, as over a network."""

    knows = True
    """Stamps and checksums."""

    async def get(self, name, *, byte_range=None):
        blob = await self.store.get(name, byte_range=byte_range)
        if not self.knows:
            blob.info = replace(blob.info, stamp=0, checksum=NO_CHECKSUM)
        data = blob.payload.whole

        async def pieces():
            for at in range(0, len(data), 100_000):
                yield data[at : at + 100_000]

        return Blob(blob.info, Stream(len(data), pieces, rereadable=False))


async def streaming(data, budget=None):
    """Objects over two stores that stream, which both have this one; its id and the stores."""
    _, objects = opened(2, budget=budget, store=lambda: Streaming(MemoryStore()))
    object_id = hashlib.sha256(data).hexdigest()
    stores = in_order(objects.cluster, object_id)
    for store in stores:
        await calls.put(store, object_id, Bytes(data), stamp=5)
    return objects, object_id, *stores


@pytest.mark.parametrize("byte_range", [None, (100, 900_000)])
@pytest.mark.parametrize("size", [200_000, 1_000_000, CHUNK, CHUNK + 500_000])
async def test_a_copy_that_breaks_off_or_is_damaged_is_replaced_by_another(size, byte_range):
    data = data_of(size)
    wanted = data if byte_range is None else data[slice(*byte_range)]
    for fault in (Fault.CUT, Fault.ROTTEN, Fault.UNAVAILABLE, Fault.CORRUPT):
        objects, object_id, first, second = await streaming(data)
        first.script("get", fault)
        assert await fetched(objects, object_id, byte_range) == wanted
        assert ("get", object_id) in second.calls
        await all_given_back(objects)
        first.script("get", fault)
        second.script("get", *[fault] * 2)
        with pytest.raises(Unavailable):
            await fetched(objects, object_id, byte_range)
        await all_given_back(objects)


@pytest.mark.parametrize("plain", [0, 1, None])
async def test_another_copy_goes_on_at_the_offset_reached(plain):
    """Also where one of the servers is a plain sos one, which knows no checksums."""
    data = data_of(CHUNK + 500_000)
    objects, object_id, *stores = await streaming(data)
    if plain is not None:
        stores[plain].store.knows = False
    first, second = stores
    asked = []
    get = second.get

    def noted(name, *, byte_range=None):
        asked.append(byte_range)
        return get(name, byte_range=byte_range)

    second.get = noted
    first.script("get", Fault.CUT)
    assert await fetched(objects, object_id) == data
    assert asked == [(len(data) // 2, len(data))]


@pytest.mark.parametrize("size", [1_000_000, CHUNK, CHUNK + 500_000])
async def test_wrong_bytes_are_never_handed_out_as_an_object(size):
    data = data_of(size)
    objects, object_id, first, second = await streaming(data)
    first.script("get", Fault.WRONG)
    if size <= CHUNK:  # read whole before a byte goes out, so that another copy can do instead
        assert await fetched(objects, object_id) == data
        first.script("get", Fault.WRONG)
        second.script("get", Fault.WRONG)
    assert await broken_off(objects, object_id) <= size - 65_536


async def test_a_manifest_that_names_another_objects_chunks_is_never_that_object():
    stores, objects = opened(1)
    other = await objects.upload(Source(data_of(2 * CHUNK)))
    manifest = await read_whole((await stores[0].get(other.id)).payload)
    object_id = hashlib.sha256(b"small").hexdigest()
    await calls.put(stores[0], object_id, Bytes(manifest), kind=Kind.MANIFEST)
    assert await broken_off(objects, object_id) == 2 * CHUNK - 65_536


async def test_what_is_far_too_long_for_a_chunk_or_a_manifest_takes_no_memory():
    class Endless(Delegating):
        async def get(self, name, *, byte_range=None):
            blob = await self.store.get(name, byte_range=byte_range)
            if name not in self.lied_about:
                return blob

            async def pieces():
                raise AssertionError("it is read")
                yield b""

            return Blob(replace(blob.info, size=1 << 40), Stream(1 << 40, pieces))

    stores, objects = opened(2)
    data = data_of(CHUNK + 1)
    object_id = (await objects.upload(Source(data))).id
    first = in_order(objects.cluster, chunk_name(data[:CHUNK]))[0]
    first.store = Endless(first.store)
    first.store.lied_about = [chunk_name(data[:CHUNK])]
    assert await fetched(objects, object_id) == data
    for store in stores:
        store.store = Endless(store.store)
        store.store.lied_about = [object_id]
    with pytest.raises(Corrupt):
        await objects.download(object_id)


async def test_a_large_manifest_is_read_in_place_and_within_the_budget():
    [store], objects = opened(1, budget=Budget(2 * CHUNK), store=lambda: Streaming(MemoryStore()))
    chunk = data_of(CHUNK)
    name = chunk_name(chunk)
    count = 10_000
    manifest = Manifest(count * CHUNK, ChunkNames(bytes.fromhex(name[5:]) * count)).encode()
    await calls.put(store, name, Bytes(chunk))
    await calls.put(store, "a" * 64, Bytes(manifest), kind=Kind.MANIFEST)
    part = ((count - 1) * CHUNK - 10, (count - 1) * CHUNK + 10)
    blob = await objects.download("a" * 64, byte_range=part)
    assert (blob.info.size, blob.payload.size) == (count * CHUNK, 20)
    pieces = aiter(blob.payload)
    got = bytes(await anext(pieces))
    assert objects.cluster.budget.free == CHUNK - len(manifest)
    got += b"".join([bytes(piece) async for piece in pieces])
    assert got == chunk[-10:] + chunk[:10]
    assert (await objects.stat("a" * 64)).size == count * CHUNK
    await all_given_back(objects)


class Slowly:
    """A clock of an uploader that takes so long for every chunk."""

    def __init__(self, seconds):
        self.passed, self.seconds = 0.0, seconds

    def __call__(self):
        self.passed += self.seconds
        return self.passed


async def test_chunks_of_a_slow_upload_are_made_young_again_before_the_manifest():
    stores, objects = opened(3)
    data = data_of(3 * CHUNK)
    stored = await Uploads(objects.cluster.writer, Budget(), now=Slowly(YOUNG)).any(Source(data))
    assert stored.copies == 2
    manifest = await objects._manifest(stored.id)
    touched = [name for store in stores for method, name in store.calls if method == "touch"]
    # Each is first asked for, on two servers; the first two are old when the last has come.
    assert sorted(touched) == sorted([*manifest.chunks] * 2 + [*manifest.chunks[:2]] * 2)


@pytest.mark.parametrize("everywhere", [True, False])
async def test_a_chunk_that_has_gone_meanwhile_is_an_error_and_never_an_object(everywhere):
    _stores, objects = opened(3)
    data = data_of(2 * CHUNK)
    lost = chunk_name(data[:CHUNK])
    source = Source(data, hold_at=CHUNK)
    uploading = asyncio.create_task(
        Uploads(objects.cluster.writer, Budget(), now=Slowly(YOUNG)).any(source)
    )
    order = in_order(objects.cluster, lost)
    while True:
        await asyncio.sleep(0.01)
        try:
            stamps = [(await store.store.stat(lost)).stamp for store in order[:2]]
            break
        except NotFound:
            continue
    for store, stamp in zip(order[: 1 + everywhere], stamps, strict=False):
        await calls.remove(store.store, lost, if_stamp=stamp)
    source.go_on.set()
    if everywhere:
        with pytest.raises(NoCopies, match=lost):
            await uploading
        with pytest.raises(NotFound):
            await objects.stat(hashlib.sha256(data).hexdigest())
    else:
        stored = await uploading
        assert stored.copies == 1
        assert await fetched(objects, stored.id) == data


async def test_a_whole_blob_under_an_object_id_is_the_object():
    stores, objects = opened(2)
    data = data_of(2 * CHUNK)
    object_id = hashlib.sha256(data).hexdigest()
    await calls.put(stores[0], object_id, Bytes(data), stamp=5)
    assert await fetched(objects, object_id) == data
    await objects.upload(Source(data))  # now a manifest, newer
    assert (await objects.stat(object_id)).kind == Kind.MANIFEST
    assert await fetched(objects, object_id) == data


async def test_an_object_known_by_its_id_is_renewed_without_its_bytes():
    stores, objects = opened(3)
    data = data_of(2 * CHUNK)
    stored = await objects.upload(Source(data))
    before = (await objects.stat(stored.id)).stamp
    again = await objects.renew(stored.id, b"")
    assert (again.size, again.copies) == (2 * CHUNK, 2)
    assert (await objects.stat(stored.id)).stamp > before
    assert await objects.renew("0" * 64, b"") is None
    stores[0].down = True  # then whether it is there may not be known: its bytes are needed
    assert await objects.renew("0" * 64, b"") is None


async def test_an_object_renewed_beside_a_delete_from_a_clock_ahead_outlasts_it():
    _stores, objects = opened()
    stored = await objects.upload(Source(b"data"))
    cluster = objects.cluster
    first, second, _ = in_order(cluster, stored.id)
    ahead = (await objects.stat(stored.id)).stamp + (600_000 << 16)
    await calls.delete(second.store, stored.id, stamp=ahead)  # the first could not be asked then
    await objects.renew(stored.id, b"")
    assert (await first.store.stat(stored.id)).stamp > ahead
