"""No object becomes visible at the destination before its chunks are there."""

from __future__ import annotations

import time

from dolmen.cluster.manifest import CHUNK, Manifest
from dolmen.errors import Corrupt, Full
from dolmen.names import chunk_name, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.replication import replicate
from dolmen.replication.manifests import GRACE
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore
from replication.setting import no_time

OBJECT = "a" * 64


def naming(*chunks: bytes) -> Bytes:
    names = [chunk_name(chunk) for chunk in chunks]
    return Bytes(Manifest(len(chunks) * CHUNK, names).encode())


async def with_object(*chunks: bytes, lost: tuple[bytes, ...] = ()) -> MemoryStore:
    store = MemoryStore()
    for chunk in chunks:
        if chunk not in lost:
            await calls.put(store, chunk_name(chunk), Bytes(chunk), stamp=1)
    await calls.put(store, OBJECT, naming(*chunks), kind=Kind.MANIFEST, stamp=1)
    return store


async def test_a_manifest_written_meanwhile_brings_its_chunks_along() -> None:
    source = await with_object(*(b"%d" % number for number in range(300)))
    destination = FaultyStore(MemoryStore())
    late = [b"late %d" % number for number in range(200)]

    async def upload(method: str, _name: str) -> None:
        if method == "put" and (await source.stat(OBJECT)).stamp == 1:
            for chunk in late:  # behind the places that were listed, and before
                await calls.put(source, chunk_name(chunk), Bytes(chunk), stamp=2)
            await calls.put(source, OBJECT, naming(*late), kind=Kind.MANIFEST, stamp=2)

    destination.pause = upload
    report = await replicate(source, destination)
    assert report.complete
    assert (await destination.stat(OBJECT)).stamp == 2
    for chunk in late:
        assert (await destination.stat(chunk_name(chunk))).size == len(chunk)
    written = [name for method, name in destination.calls if method == "put"]
    assert written[-1] == OBJECT


async def test_a_manifest_stays_behind_when_a_chunk_of_it_can_not_be_read() -> None:
    source = FaultyStore(await with_object(b"good", b"bad"))
    await calls.put(source.store, "b" * 64, naming(b"good"), kind=Kind.MANIFEST)
    destination = MemoryStore()

    async def rot(method: str, name: str) -> None:
        if method in ("get", "stat") and name == chunk_name(b"bad"):
            raise Corrupt("damaged")

    source.pause = rot
    report = await replicate(source, destination, pause=no_time)
    held = {info.name async for info in destination.list()}
    assert held == {chunk_name(b"good"), "b" * 64}
    assert not report.complete
    assert report.refused["ChunkMissing"].examples[0][0] == OBJECT
    source.pause = None
    assert (await replicate(source, destination, pause=no_time)).complete
    assert (await destination.stat(OBJECT)).kind == Kind.MANIFEST


async def test_a_chunk_that_the_source_lacks_as_well_does_not_hold_it_up() -> None:
    source, destination = (
        await with_object(b"here", b"elsewhere", lost=(b"elsewhere",)),
        MemoryStore(),
    )
    assert (await replicate(source, destination)).complete
    assert (await source.digests()).root == (await destination.digests()).root


async def test_chunks_of_partitions_that_take_no_part_are_left_alone() -> None:
    chunks = [b"%d" % number for number in range(50)]
    source = await with_object(*chunks)
    destination = FaultyStore(MemoryStore())
    wanted = {partition_of(OBJECT), partition_of(chunk_name(chunks[0]))}
    assert (await replicate(source, destination, partitions=wanted)).complete
    held = {info.name async for info in destination.store.list()}
    assert held == {OBJECT, chunk_name(chunks[0])}
    asked = {name for method, name in destination.calls if method == "stat"}
    assert asked == {chunk_name(chunks[0])}


async def test_a_copied_manifest_with_a_raised_stamp_is_touched_without_a_look_at_chunks() -> None:
    source = await with_object(b"one", b"two")
    destination = FaultyStore(MemoryStore())
    await replicate(source, destination)
    info = await source.stat(OBJECT)
    await calls.touch(source, OBJECT, stamp=9, checksum=info.checksum, meta=b"")
    destination.calls.clear()
    report = await replicate(source, destination)
    assert (report.touched, report.copied) == (1, 0)
    assert not [call for call in destination.calls if call[0] == "stat"]


async def test_an_old_chunk_that_a_copied_manifest_names_is_made_young() -> None:
    """Or garbage collection, which did not see the manifest, might just be taking it."""
    ago = 2 * GRACE
    source = MemoryStore()
    destination = MemoryStore(now=lambda: time.time() - ago)
    name = chunk_name(b"chunk")
    manifest = Manifest(5, [name]).encode()
    for store in (source, destination):
        await calls.put(store, name, Bytes(b"chunk"), stamp=7)
    await calls.put(source, "object", Bytes(manifest), kind=Kind.MANIFEST)
    ago = 0
    assert time.time() - (await destination.stat(name)).arrived > GRACE
    assert (await replicate(source, destination)).complete
    assert (await destination.stat(name)).stamp == 7
    assert await calls.remove(destination, name, if_stamp=7, min_age=GRACE) is False


async def with_an_old_chunk() -> tuple[MemoryStore, FaultyStore, str]:
    """A source with a manifest, a destination whose chunk of it is old, and the chunk's name."""
    source = MemoryStore()
    destination = FaultyStore(MemoryStore(now=lambda: time.time() - 2 * GRACE))
    name = chunk_name(b"chunk")
    for store in (source, destination):
        await calls.put(store, name, Bytes(b"chunk"), stamp=7)
    await calls.put(source, "object", Bytes(Manifest(5, [name]).encode()), kind=Kind.MANIFEST)
    return source, destination, name


async def test_an_old_chunk_that_went_at_that_moment_is_copied() -> None:
    source, destination, name = await with_an_old_chunk()

    async def collected(method: str, touched: str) -> None:
        if method == "touch":
            await calls.remove(destination.store, touched, if_stamp=7)

    destination.pause = collected
    report = await replicate(source, destination)
    assert report.complete
    assert await read_whole((await destination.get(name)).payload) == b"chunk"


async def test_an_old_chunk_that_a_full_server_can_not_touch_holds_back_its_manifest_alone() -> (
    None
):
    source, destination, _ = await with_an_old_chunk()
    await calls.put(source, "other", Bytes(b"other"))
    destination.script("touch", Full("no room"))
    report = await replicate(source, destination)
    assert (report.copied, report.refused["Full"].count) == (1, 1)
    assert (await replicate(source, destination)).complete
