"""An export holds all that stood, chunks before their manifests, wherever it was broken off."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.cluster.manifest import CHUNK, Manifest, decode
from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.names import chunk_name, is_chunk_name, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS, Mark, Reader
from dolmen.replication.begun import begun
from dolmen.replication.export import export
from dolmen.stamps import format_stamp
from dolmen.store import Blob, Capabilities, Failed
from dolmen.stores.horizon import HORIZON
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore
from replication.archives import exported, group_of, pieces, read, sink_into

META = metadata.encode([(b"x-file-name", b"a.txt")])
PARTS = [bytes([number]) * 20 for number in range(6)]


async def nothing(_seconds: float) -> None:
    """Wait for no time at all."""
    await asyncio.sleep(0)


async def add_object(store, name: str, parts: list[bytes]) -> list[str]:
    chunks = [chunk_name(part) for part in parts]
    for chunk, part in zip(chunks, parts, strict=True):
        await calls.put(store, chunk, Bytes(part))
    manifest = Manifest((len(chunks) - 1) * CHUNK + 1, chunks).encode()
    await calls.put(store, name, Bytes(manifest), kind=Kind.MANIFEST, meta=META)
    return chunks


async def filled(store=None) -> MemoryStore:
    store = store or MemoryStore()
    for number in range(40):
        await calls.put(
            store, f"blob-{number}", Bytes(b"data %d" % number), meta=META if number % 2 else b""
        )
    for number in range(4):
        await calls.delete(store, f"blob-{number}")
    await add_object(store, "one", PARTS[:2])
    await add_object(store, "two", PARTS[1:4])
    return store


async def contents(data: bytes) -> dict[str, tuple[object, bytes]]:
    """What an archive holds under each name; checks its order on the way."""
    items, reader = await read(data)
    assert [items[0].word, items[-1].word] == [EXPORT, END]
    assert reader.end == len(data)
    held: dict[str, tuple[object, bytes]] = {}
    second, last = False, (-1, "")
    for item in items[1:-1]:
        if isinstance(item, Mark):
            assert (item.word, second) == (MANIFESTS, False)
            second, last = True, (-1, "")
        elif isinstance(item, Blob):
            info = item.info
            place = (partition_of(info.name), info.name)
            if second and info.kind == Kind.MANIFEST:
                assert place > last
                last = place
            elif second:
                assert is_chunk_name(info.name)
            else:
                assert info.kind != Kind.MANIFEST
                assert place > last
                last = place
            held[info.name] = (info.rank, bytes(item.payload.whole))
    return held


async def everything(*stores) -> dict[str, tuple[object, bytes]]:
    """The highest ranks of all that some stores hold."""
    held: dict[str, tuple[object, bytes]] = {}
    for store in stores:
        names = [info.name async for info in calls.listing(store, tombstones=True)]
        async for found in store.get_many(names):
            assert isinstance(found, Blob)
            if found.info.name not in held or found.info.rank > held[found.info.name][0]:
                held[found.info.name] = (found.info.rank, bytes(found.payload.whole))
    return held


async def test_everything_is_in_it():
    store = await filled()
    data, report = await exported(store)
    assert await contents(data) == await everything(store)
    assert report.complete
    assert (report.copied, report.tombstones) == (36 + 4 + 2, 4)
    assert report.compared == report.total


async def test_an_empty_store_makes_an_archive_too():
    data, _ = await exported(MemoryStore())
    assert await contents(data) == {}


async def test_of_several_servers_the_newest_of_each_name_is_in_it():
    one, two = await filled(), await filled()
    await calls.delete(one, "blob-7")
    await calls.put(two, "only-here", Bytes(b"x"))
    await calls.remove(one, "blob-9", if_stamp=(await one.stat("blob-9")).stamp)
    data, _ = await exported(one, two)
    assert await contents(data) == await everything(one, two)


async def test_a_copy_that_is_damaged_is_taken_from_another_server():
    one, two = FaultyStore(await filled()), FaultyStore(await filled())
    await calls.put(two, "both", Bytes(b"same"), stamp=5)
    await calls.put(one, "both", Bytes(b"same"), stamp=5)
    one.at_random(None, 0)
    one.script("get", *[Corrupt("damaged")] * 500)
    data, report = await exported(one, two, pause=nothing)
    assert (await contents(data))["both"][1] == b"same"
    assert report.refused.keys() <= {"Corrupt"}


async def test_what_no_server_has_sound_is_named_in_it():
    store = FaultyStore(await filled())
    names = [info.name async for info in store.list()]
    first = next(name for name in names if not is_chunk_name(name))
    store.script("get", Corrupt("damaged"), Corrupt("damaged"))
    data, report = await exported(store, pause=nothing)
    items, _ = await read(data)
    (failed,) = [item for item in items if isinstance(item, Failed)]
    assert isinstance(failed.error, Corrupt)
    assert report.refused["Corrupt"].count == 1
    assert first


async def test_a_server_that_stays_away_ends_it():
    store = FaultyStore(await filled())
    store.down = True
    with pytest.raises(Unavailable, match="a: "):
        await exported(store, pause=nothing)


async def test_a_server_that_is_away_for_a_moment_does_not():
    store = FaultyStore(await filled())
    store.script("get", None, Fault.UNAVAILABLE, None, Fault.UNAVAILABLE, Fault.UNAVAILABLE)
    data, report = await exported(store, pause=nothing)
    assert report.complete
    assert await contents(data) == await everything(store.store)


@pytest.mark.parametrize("when", [0, 3, 20, 42])
async def test_an_object_written_meanwhile_has_its_chunks_in_it(when):
    store = FaultyStore(await filled())
    reads = 0

    async def write(method: str, _name: str) -> None:
        nonlocal reads
        reads += method == "get"
        if method == "get" and reads == when + 1:
            stamp = (await store.store.stat("two")).stamp
            await calls.delete(store.store, "two", stamp=stamp + 1)
            await add_object(store.store, "two", [b"new 1", b"new 2", PARTS[5]])

    store.pause = write
    data, _ = await exported(store)
    held = await contents(data)
    chunks = decode(held["two"][1]).chunks
    assert chunk_name(b"new 1") in chunks
    assert held.keys() >= set(chunks)


async def test_what_may_be_a_forgotten_delete_is_left_out_and_told():
    away, stayed = MemoryStore(), MemoryStore()
    await calls.put(away, "old", Bytes(b"old"), stamp=5)
    await calls.put(stayed, "new", Bytes(b"new"), stamp=90)
    await stayed.note(HORIZON, format_stamp(50).encode())
    data, report = await exported(away, stayed)
    assert set(await contents(data)) == {"new"}
    assert report.refused["MayBeDeleted"].count == 1
    await calls.put(stayed, "old", Bytes(b"old"), stamp=5)
    data, report = await exported(away, stayed)
    assert set(await contents(data)) == {"new", "old"}
    items, _ = await read(data)
    assert items[0].facts["horizon"] == format_stamp(50)


async def test_a_server_without_stamps_is_believed_where_names_are_digests():
    class Plain(MemoryStore):
        capabilities = Capabilities(
            durable=True, largest=1 << 30, digests=False, ordered=True, conflicts=True, stamps=False
        )

    store = Plain()
    await calls.put(store, chunk_name(b"right"), Bytes(b"right"))
    await calls.put(store, chunk_name(b"wrong"), Bytes(b"other"))
    data, report = await exported(store)
    assert [bytes(body) for _, body in (await contents(data)).values()] == [b"right"]
    assert report.refused["Corrupt"].count == 1


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6_000), min_size=1, max_size=4))
async def test_broken_off_anywhere_and_gone_on_with_it_ends_the_same(cuts):
    store = await filled()
    whole, _ = await exported(store)
    data = b""
    for cut in cuts:
        parts = [data]
        found = await begun(Reader(pieces(data))) if data else None
        if found:
            parts = [data[: found.end]]
            if found.complete:
                break
        await export(group_of(store), sink_into(parts), source="here", begun=found)
        data = b"".join(parts)
        least = len(parts[0]) if found else 200
        data = data[: max(least, cut)]
    found = await begun(Reader(pieces(data)))
    parts = [data[: found.end]]
    if not found.complete:
        report = await export(group_of(store), sink_into(parts), source="here", begun=found)
        assert (report.copied, report.tombstones) == (42, 4)
    data = b"".join(parts)
    assert len(data) == len(whole)
    assert await contents(data) == await everything(store)


async def test_gone_on_with_later_it_has_the_chunks_that_were_written_meanwhile():
    store = await filled()
    data, _ = await exported(store)
    for cut in range(300, len(data), 997):
        later = await filled()
        await add_object(later, "late", [b"late 1", b"late 2", PARTS[5]])
        found = await begun(Reader(pieces(data[:cut])))
        parts = [data[: found.end]]
        await export(group_of(later), sink_into(parts), source="here", begun=found)
        held = await contents(b"".join(parts))
        if "late" in held:
            assert {chunk_name(part) for part in (b"late 1", b"late 2", PARTS[5])} <= held.keys()


async def test_what_is_damaged_in_its_middle_is_not_gone_on_with():
    data = bytearray((await exported(await filled()))[0])
    data[len(data) // 2] ^= 1
    with pytest.raises(Corrupt, match="damaged"):
        await begun(Reader(pieces(bytes(data))))


@pytest.mark.parametrize("data", [b"hello", bytes(500)])
async def test_what_is_no_archive_is_not_gone_on_with(data):
    with pytest.raises(Corrupt, match="no archive"):
        await begun(Reader(pieces(data)))


async def test_a_large_blob_is_in_it_and_gone_on_behind():
    store = MemoryStore()
    await calls.put(store, "large", Bytes(b"x" * 6_000_000))
    await calls.put(store, "small", Bytes(b"y"))
    whole, _ = await exported(store)
    assert (await contents(whole))["large"][1] == b"x" * 6_000_000
    for cut in (2_000_000, len(whole) - 300):
        found = await begun(Reader(pieces(whole[:cut])))
        parts = [whole[: found.end]]
        await export(group_of(store), sink_into(parts), source="here", begun=found)
        assert await contents(b"".join(parts)) == await everything(store)


async def test_a_blob_that_went_meanwhile_is_no_failure():
    store = FaultyStore(await filled())
    store.script("get", NotFound("gone"), NotFound("gone"))
    data, report = await exported(store, pause=nothing)
    assert report.complete
    assert report.vanished == 1
    assert len(await contents(data)) == 45
