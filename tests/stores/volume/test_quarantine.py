"""A copy that fails its check: damaged, never absent, until a valid put replaces it."""

import asyncio
import random
from pathlib import Path

import pytest

from dolmen.errors import Conflict, Corrupt, NotFound
from dolmen.http import start_server
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.servers.blob import BlobServer
from dolmen.stores import open_store
from dolmen.stores.volume import VolumeStore, open_volume
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.reindex import reindex
from dolmen.testing.crash import SimulatedDisk


def damage(path: Path, entry: Entry, at: int) -> None:
    """Flip a bit of the record's bytes."""
    for folder in ("active", "sealed/000000"):
        segment = path / folder / f"{entry.segment:08x}.seg"
        if segment.exists():
            with segment.open("r+b") as file:
                file.seek(entry.offset + at)
                found = file.read(1)
                file.seek(entry.offset + at)
                file.write(bytes([found[0] ^ 1]))
            return
    pytest.fail("no such segment")


async def marked(store: VolumeStore, name: str) -> None:
    for _ in range(500):
        try:
            await store.stat(name)
        except Corrupt:
            return
        await asyncio.sleep(0.01)
    pytest.fail("it was never marked")


async def quarantined(path: Path) -> VolumeStore:
    store = await open_volume(str(path))
    await store.put("good", Bytes(b"good"))
    await store.put("name", Bytes(b"data" * 100))
    damage(path, store._live("name"), 200)
    with pytest.raises(Corrupt):
        await store.get("name")
    await marked(store, "name")
    return store


@pytest.mark.parametrize(
    ("size", "byte_range"), [(400, None), (400, (100, 200)), (2 << 20, None), (2 << 20, (1, 9))]
)
async def test_one_the_disk_can_not_read_is_quarantined_and_replaced(tmp_path, size, byte_range):
    disk = SimulatedDisk(str(tmp_path), rng=random.Random(1))
    store = await open_volume(f"{tmp_path}/v", disk=disk)
    await store.put("good", Bytes(b"good"))
    put = await store.put("name", Bytes(b"d" * size))
    entry = store._live("name")
    disk.spoil(f"{tmp_path}/v/active/{entry.segment:08x}.seg", entry.offset + 200)
    with pytest.raises(Corrupt, match="quarantined"):
        async for _ in (await store.get("name", byte_range=byte_range)).payload:
            pass
    await marked(store, "name")
    assert [info.name async for info in store.list()] == ["good"]
    assert (await store.digests()).count == 1
    again = await store.put("name", Bytes(b"d" * size), stamp=put.stamp)
    assert again.outcome == "created"
    assert (await store.get("name", byte_range=(0, 3))).payload.whole == b"ddd"
    await store.aclose()


async def test_one_of_many_that_can_not_be_read_is_quarantined(tmp_path):
    disk = SimulatedDisk(str(tmp_path), rng=random.Random(1))
    store = await open_volume(f"{tmp_path}/v", disk=disk)
    for name in ("a", "name", "z"):
        await store.put(name, Bytes(name.encode()))
    entry = store._live("name")
    disk.spoil(f"{tmp_path}/v/active/{entry.segment:08x}.seg", entry.offset)
    a, failed, z = [answer async for answer in store.get_many(["a", "name", "z"])]
    assert (a.payload.whole, z.payload.whole) == (b"a", b"z")
    assert isinstance(failed.error, Corrupt)
    await marked(store, "name")
    await store.aclose()


async def test_it_answers_corrupt_and_leaves_lists_and_digests(tmp_path):
    store = await quarantined(tmp_path / "v")
    with pytest.raises(Corrupt):
        await store.get("name", byte_range=(0, 1))
    checksum = checksum_of(b"data" * 100)
    with pytest.raises(NotFound):  # as the contract has it for a touch
        await store.touch("name", stamp=1 << 63, checksum=checksum, meta=b"")
    assert [info.name async for info in store.list()] == ["good"]
    assert (await store.digests()).count == 1
    await store.aclose()


async def test_it_lasts_over_a_restart(tmp_path):
    store = await quarantined(tmp_path / "v")
    await store.aclose()
    store = await open_volume(str(tmp_path / "v"))
    with pytest.raises(Corrupt):
        await store.stat("name")
    assert (await store.digests()).count == 1
    await store.aclose()


@pytest.mark.parametrize("older", [True, False], ids=["an older stamp", "the same stamp"])
async def test_a_valid_put_replaces_it(tmp_path, older):
    store = await quarantined(tmp_path / "v")
    stamp = (await store.stat("good")).stamp - 5 if older else 1 << 60
    put = await store.put("name", Bytes(b"data" * 100), stamp=stamp)
    assert (put.outcome, put.stamp) == ("created", stamp)
    assert (await store.get("name")).payload.whole == b"data" * 100
    assert (await store.digests()).count == 2
    await store.aclose()
    reindex(str(tmp_path / "v"))
    store = await open_volume(str(tmp_path / "v"))
    assert (await store.get("name")).payload.whole == b"data" * 100
    await store.aclose()


async def test_a_plain_put_of_the_same_content_replaces_it_and_of_other_conflicts(tmp_path):
    store = await quarantined(tmp_path / "v")
    with pytest.raises(Conflict):
        await store.put("name", Bytes(b"other"))
    assert (await store.put("name", Bytes(b"data" * 100))).outcome == "created"
    assert (await store.get("name")).payload.whole == b"data" * 100
    await store.aclose()


async def test_it_can_be_deleted_and_removed(tmp_path):
    store = await quarantined(tmp_path / "v")
    stamp = (await store.delete("name")).stamp
    with pytest.raises(NotFound):
        await store.get("name")
    assert await store.remove("name", if_stamp=stamp)
    assert (await store.digests()).count == 1
    await store.aclose()


async def test_a_delete_whose_record_was_lost_comes_back_from_another_copy(tmp_path):
    path = tmp_path / "v"
    store = await open_volume(str(path))
    stamp = (await store.delete("name")).stamp
    await store.aclose()
    lost = list(path.rglob("*.seg"))
    store = await open_volume(str(path))
    await store.put("good", Bytes(b"good"))
    await store.aclose()
    for segment in lost:
        segment.unlink()
    reindex(str(path))
    store = await open_volume(str(path))
    with pytest.raises(Corrupt):
        await store.stat("name")
    assert (await store.delete("name", stamp=stamp)).stamp == stamp
    with pytest.raises(NotFound):
        await store.stat("name")
    assert (await store.digests()).count == 2
    await store.aclose()


async def test_it_is_still_known_after_a_reindex(tmp_path):
    store = await quarantined(tmp_path / "v")
    digests = await store.digests()
    await store.aclose()
    reindex(str(tmp_path / "v"))
    store = await open_volume(str(tmp_path / "v"))
    assert await store.digests() == digests
    with pytest.raises(Corrupt):
        await store.get("name")
    await store.aclose()


@pytest.mark.parametrize(
    "at", [0, 8, 30, 75, 77], ids=["magic", "lengths", "sequence", "crc", "name"]
)
@pytest.mark.parametrize("newest", [False, True], ids=["only record", "over an older one"])
async def test_a_record_whose_head_is_damaged_is_not_taken_for_absent_by_reindex(
    tmp_path, at, newest
):
    path = tmp_path / "v"
    store = await open_volume(str(path))
    if newest:
        await store.put("name", Bytes(b"old"), stamp=1)
    await store.put("name", Bytes(b"data" * 100), stamp=2)
    entry = store._live("name")
    await store.put("other", Bytes(b"other"))
    await store.aclose()
    damage(path, entry, at)
    told = reindex(str(path)).damaged
    assert len(told) == 2
    assert any("name:" in line for line in told)
    store = await open_volume(str(path))
    with pytest.raises(Corrupt):
        await store.get("name")
    assert [info.name async for info in store.list()] == ["other"]
    await store.aclose()


async def test_a_segment_whose_header_is_damaged_is_read_by_its_records(tmp_path):
    path = tmp_path / "v"
    store = await open_volume(str(path))
    for number in range(5):
        await store.put(f"n{number}", Bytes(b"data"))
    await store.aclose()
    (segment,) = path.rglob("*.seg")
    with segment.open("r+b") as file:
        file.write(bytes(64))
    assert reindex(str(path)).blobs == 5
    store = await open_volume(str(path))
    for number in range(5):
        assert (await store.get(f"n{number}")).payload.whole == b"data"
    await store.put("more", Bytes(b"more"))
    await store.aclose()
    store = await open_volume(str(path))
    assert len([info async for info in store.list()]) == 6
    await store.aclose()


async def test_what_is_quarantined_is_listed_until_it_is_replaced(tmp_path):
    store = await quarantined(tmp_path / "v")
    assert [name async for name in store.quarantined()] == ["name"]
    server = await start_server(BlobServer(store, describes="volume:test").handle)
    remote = await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
    assert [name async for name in remote.quarantined()] == ["name"]
    await remote.put("name", Bytes(b"data" * 100))
    assert [name async for name in remote.quarantined()] == []
    await remote.aclose()
    await server.close()
    await store.aclose()
