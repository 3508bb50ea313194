"""A scrub reads everything once, tells what is damaged, and goes on where it was broken off."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dolmen.errors import Corrupt, Unavailable
from dolmen.metadata import encode
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.payload import Bytes, read_whole
from dolmen.replication import replicate
from dolmen.store import Failed
from dolmen.stores.memory import MemoryStore
from dolmen.stores.scrub import Scrub, scrub, scrub_in
from dolmen.stores.volume import open_volume
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore


async def through(store, **how):
    """Scrub to the end: how far it came, and the names of what is damaged."""
    damaged = []
    async for at, failed in scrub(store, **how):
        done, damaged = at, damaged + [each.name for each in failed]
    return done, damaged


async def filled(count=1_000):
    store = FaultyStore(MemoryStore())
    for number in range(count):
        await calls.put(store.store, f"name-{number}", Bytes(b"data"))
    await calls.delete(store.store, "name-0")
    return store


async def test_everything_is_read_once():
    store = await filled()
    done, damaged = await through(store, now=lambda: 77.0)
    assert damaged == []
    assert done == Scrub(77.0, done.place, 999, 3_996, 0, 77.0, 77.0)
    assert scrub_in(await store.notes()) == done
    read = [name for method, name in store.calls if method == "get"]
    assert len(read) == len(set(read)) == 999


async def test_the_next_one_begins_anew_once_it_was_through():
    store = await filled(10)
    await through(store, now=lambda: 1.0)
    done, _ = await through(store, now=lambda: 2.0)
    assert (done.begun, done.checked, done.last) == (2.0, 9, 2.0)


async def test_one_that_was_broken_off_goes_on_where_it_was():
    store = await filled()
    time = 0.0

    def now():
        nonlocal time
        time += 20
        return time

    batches = scrub(store, now=now)
    await anext(batches)
    await anext(batches)
    await batches.aclose()
    known = scrub_in(await store.notes())
    assert known.ended is None
    assert 0 < known.done < 1
    store.calls.clear()
    done, _ = await through(store, now=now)
    assert done.begun == known.begun
    assert done.checked == 999
    read = {name for method, name in store.calls if method == "get"}
    assert len(read) == 999 - known.checked
    assert all(
        (partition_of(name), name) > (partition_of(known.place), known.place) for name in read
    )
    again, _ = await through(store, again=True, now=now)
    assert again.checked == 999


async def test_what_is_damaged_is_named_and_what_went_is_not():
    store = await filled(20)

    async def met(method, name):
        if (method, name) == ("get", "name-7"):
            raise Corrupt("rotten")
        if (method, name) == ("get", "name-8"):
            await calls.delete(store.store, "name-8")

    store.pause = met
    done, damaged = await through(store)
    assert damaged == ["name-7"]
    assert (done.checked, done.failed) == (19, 1)


async def test_a_store_that_can_not_be_asked_ends_it():
    store = await filled(20)
    store.script("get", Fault.UNAVAILABLE)
    with pytest.raises(Unavailable):
        await through(store)
    assert (await through(store))[0].checked == 19


async def test_it_keeps_to_its_bandwidth():
    store = await filled(2_000)
    waited = []

    async def pause(seconds):
        waited.append(seconds)

    await through(store, pace=Pace(100, now=lambda: 0.0), pause=pause)
    assert max(waited) == pytest.approx(1_999 * 4 / 100, rel=0.2)


async def test_notes_that_make_no_sense_are_none():
    store = MemoryStore()
    await store.note("scrub", b"[1]")
    assert scrub_in(await store.notes()) is None
    done, _ = await through(store)
    assert (done.checked, done.done) == (0, 1.0)


def flip(folder: Path, at: int) -> None:
    (segment,) = folder.rglob("*.seg")
    with segment.open("r+b") as file:
        file.seek(at)
        found = file.read(1)
        file.seek(at)
        file.write(bytes([found[0] ^ 1]))


@pytest.mark.parametrize("seed", range(4))
async def test_any_damage_on_disk_is_found_quarantined_and_replaced(tmp_path, seed):
    """Any byte of the data or its sums."""
    rng = random.Random(seed)
    store, other = await open_volume(str(tmp_path / "a")), MemoryStore()
    for number in range(40):
        data = rng.randbytes(rng.choice((10, 1_000, 200_000)))
        await calls.put(store, f"name-{number}", Bytes(data), stamp=number + 1)
        await calls.put(other, f"name-{number}", Bytes(data), stamp=number + 1)
    places = {name: store._live(name) for name in ("name-3", "name-20", "name-31")}
    for name, entry in places.items():
        start = entry.data_at(name.encode())
        flip(tmp_path / "a", start + rng.randrange(entry.length + 4))
    done, damaged = await through(store)
    assert set(damaged) == set(places)
    assert done.failed == 3
    assert [name async for name in calls.quarantined(store)] == sorted(places, key=in_order)
    assert (await replicate(other, store)).complete
    assert [name async for name in calls.quarantined(store)] == []
    assert (await through(store))[1] == []
    await store.aclose()


async def test_a_damaged_head_is_told_of_and_the_blob_still_read(tmp_path):
    """Any byte of it; where it is one that reading compares, it is quarantined."""
    store = await open_volume(str(tmp_path / "a"))
    await calls.put(store, "name", Bytes(b"data"), meta=encode([(b"a", b"b")]))
    entry = store._live("name")
    for at in range(entry.data_at(b"name") - entry.data[1]):
        flip(tmp_path / "a", entry.data[1] + at)
        (answer,) = [each async for each in store.verify_many(["name"])]
        assert isinstance(answer, Failed), at
        assert isinstance(answer.error, Corrupt)
        flip(tmp_path / "a", entry.data[1] + at)
        if "quarantined" in str(answer.error):
            assert [name async for name in calls.quarantined(store)] == ["name"]
            await calls.put(store, "name", Bytes(b"data"), meta=encode([(b"a", b"b")]))
            entry = store._live("name")
        assert await read_whole((await store.get("name")).payload) == b"data"
    await store.aclose()


def in_order(name):
    return partition_of(name), name
