"""What nobody needs goes after a day, what somebody needs stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.store import Outcome
from dolmen.stores.objects import ObjectsStore
from dolmen.stores.objects.head import folder_of
from dolmen.stores.objects.parts import GRACE, PART
from dolmen.testing.conformance import Time
from dolmen.testing.conformance.material import at, content, noise
from engines.buckets import everything, opened

LARGE = noise(100_000)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=["folder", "rclone", "moto", "azurite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path}"
    return request.getfixturevalue(request.param).url(f"sweep-{os.urandom(8).hex()}")


@pytest.fixture
async def store(tmp_path: Path, time: Time) -> AsyncIterator[ObjectsStore]:
    """In a folder: what holds there does not depend on the bucket."""
    store = opened(f"file://{tmp_path}", time)
    yield store
    await store.aclose()


async def test_what_was_overruled_goes_a_day_later(url: str, time: Time) -> None:
    store = opened(url, time)
    bucket = store._bucket
    await store.put("kept", Bytes(LARGE), stamp=at(1))
    await store.put("touched", Bytes(LARGE), stamp=at(1))
    await store.touch("touched", stamp=at(2), checksum=checksum_of(LARGE), meta=b"")
    await store.put("replaced", Bytes(LARGE), stamp=at(1))
    await store.put("replaced", Bytes(noise(100_000, 1)), stamp=at(2))
    await store.put("deleted", Bytes(LARGE), stamp=at(1))
    await store.delete("deleted", stamp=at(2))
    everywhere = await everything(bucket)
    assert len(everywhere) == 7 + 5  # heads and parts

    time.advance(GRACE - 1)
    await store.sweeper.sweep_if_due()
    assert await everything(bucket) == everywhere

    time.advance(GRACE + 1)
    before = [info async for info in store.list(tombstones=True)]
    await store.sweeper.sweep_if_due()
    left = await everything(bucket)
    assert len(left) == 4 + 3
    assert [info async for info in store.list(tombstones=True)] == before
    assert await content(store, "kept") == await content(store, "touched") == LARGE
    assert await content(store, "replaced") == noise(100_000, 1)
    with pytest.raises(NotFound) as caught:
        await store.get("deleted")
    assert caught.value.stamp == at(2)
    await store.aclose()


async def test_an_upload_that_was_given_up_goes_a_day_later(
    store: ObjectsStore, time: Time
) -> None:
    came = asyncio.Event()

    async def opened() -> AsyncIterator[Piece]:
        yield noise(PART + 5)
        came.set()
        await asyncio.Event().wait()  # for ever

    put = asyncio.ensure_future(store.put("name", Stream(2 * PART, opened)))
    await came.wait()
    while not (left := await everything(store._bucket)):
        await asyncio.sleep(0)
    put.cancel()
    await asyncio.gather(put, return_exceptions=True)
    assert [path.split("/")[0] for path in left] == ["data"]
    time.advance(GRACE - 1)
    await store.sweeper.sweep_if_due()
    assert await everything(store._bucket) == left
    time.advance(GRACE)
    await store.sweeper.sweep_if_due()
    assert await everything(store._bucket) == []


async def test_a_slow_upload_stays_though_it_takes_days(store: ObjectsStore, time: Time) -> None:
    data = noise(5 * PART + 3)

    async def opened() -> AsyncIterator[Piece]:
        for start in range(0, len(data), PART):
            yield data[start : start + PART]
            time.advance(GRACE * 0.45)
            await store.sweeper.sweep_if_due()

    assert (await store.put("name", Stream(len(data), opened))).outcome is Outcome.CREATED
    await store.sweeper.sweep_if_due()
    assert await content(store, "name") == data


async def test_an_upload_that_stood_still_for_a_day_is_refused(
    store: ObjectsStore, time: Time
) -> None:
    async def opened() -> AsyncIterator[Piece]:
        yield noise(PART)
        time.advance(GRACE)
        yield noise(PART)

    with pytest.raises(Unavailable, match="stood still"):
        await store.put("name", Stream(2 * PART, opened))
    assert await everything(store._bucket) == []


async def test_a_touch_that_saw_what_is_removed_keeps_its_parts(
    store: ObjectsStore, time: Time
) -> None:
    """It looked before, and its head comes after the removal and after a sweep."""
    await store.put("name", Bytes(LARGE), stamp=at(1))
    time.advance(3 * GRACE)
    heads, seen = await store._ledger.standing("name")
    assert seen is not None
    assert await store.remove("name", if_stamp=at(1))
    await store.sweeper.sweep_if_due()
    seen.stamp = at(2)
    await store._ledger.add(seen, heads[-1].id)
    assert await content(store, "name") == LARGE

    assert await store.remove("name", if_stamp=at(2))
    time.advance(GRACE)
    await store.sweeper.sweep_if_due()
    assert await everything(store._bucket) == []


async def test_a_removal_that_is_cut_off_brings_nothing_back(store: ObjectsStore) -> None:
    await store.put("name", Bytes(b"old"), stamp=at(1))
    await store.put("name", Bytes(b"new"), stamp=at(2))
    await store.delete("name", stamp=at(3))
    bucket, deleted = store._bucket, []
    delete = bucket.delete

    async def dies(paths: list[str]) -> None:
        deleted.append(len(paths))
        if len(deleted) == 2:
            raise Unavailable("the machine went down")
        await delete(paths)

    bucket.delete = dies
    with pytest.raises(Unavailable):
        await store.remove("name", if_stamp=at(3))
    bucket.delete = delete
    assert deleted == [2, 1]
    with pytest.raises(NotFound) as caught:
        await store.get("name")
    assert caught.value.stamp == at(3)


async def test_only_one_of_several_processes_sweeps(
    store: ObjectsStore, tmp_path: Path, time: Time
) -> None:
    other = opened(f"file://{tmp_path}", time)
    await store.put("name", Bytes(b"one"), stamp=at(1))
    await store.put("name", Bytes(b"two"), stamp=at(2))
    await store.sweeper.sweep_if_due()
    time.advance(GRACE - 1)
    await other.sweeper.sweep_if_due()
    assert len(await everything(store._bucket)) == 2
    time.advance(1)
    await other.sweeper.sweep_if_due()
    assert len(await everything(store._bucket)) == 1
    assert len(await store._bucket.all("sweeps")) == 1
    await other.aclose()


async def test_files_the_driver_left_half_written_go(store: ObjectsStore, tmp_path: Path) -> None:
    await store.put("name", Bytes(b"one"))
    (path,) = await everything(store._bucket)
    old, new = tmp_path / f"{path}#1", tmp_path / f"{path}#2"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (1, 1))
    await store.sweeper.sweep_if_due()
    assert (old.exists(), new.exists()) == (False, True)
    assert await content(store, "name") == b"one"


async def test_parts_that_were_swept_too_early_make_the_blob_damaged_not_wrong(
    store: ObjectsStore,
) -> None:
    await store.put("name", Bytes(LARGE), stamp=at(1))
    await store._bucket.delete(await store._bucket.all(folder_of("data", "name")))
    with pytest.raises(Corrupt):
        await store.get("name")
    with pytest.raises(Corrupt):
        await store.stat("name")
    assert [info async for info in store.list()] == []
    assert (await store.digests()).count == 0
    assert await store.put("name", Bytes(LARGE), stamp=at(1)) == (Outcome.CREATED, at(1))
    assert await content(store, "name") == LARGE
