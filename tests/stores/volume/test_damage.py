"""Damage is found, never served; it costs the copies it hit and nothing else."""

import errno
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dolmen.errors import BadVolume, Corrupt, DolmenError, InvalidName, NotFound, Unavailable
from dolmen.names import checksum_of
from dolmen.store import Listing, Outcome, Write
from dolmen.stores.volume import volume as volume_module
from dolmen.stores.volume.recovery import reindex
from stores.volume.conftest import Opener, data_of, failure, files, flip, place_of, put


@pytest.mark.parametrize("size", [1, 1_000, 70_000, 300_000, 5 << 20])
async def test_a_put_onto_a_rotten_copy_is_stored_anew(opened: Opener, size: int) -> None:
    store = await opened()
    data = random.Random(size).randbytes(size)
    await put(store, "a", data)
    path, at = place_of(store, "a")
    flip(path, at + size // 2)
    again = await put(store, "a", data)
    assert again.outcome in (Outcome.CREATED, Outcome.UNCHANGED)
    assert await data_of(store, "a") == data
    # A touch has no data to store in its place.
    path, at = place_of(store, "a")
    flip(path, at + size // 2)
    touch = Write.touch("a", stamp=again.stamp + 1, checksum=checksum_of(data))
    with pytest.raises(NotFound):
        await store.write(touch)
    with pytest.raises(Corrupt):
        await store.stat("a")
    assert [info.name async for info in store.list(Listing(quarantined=True))] == ["a"]


async def test_an_identical_put_takes_no_second_copy_on_the_disk(opened: Opener) -> None:
    store = await opened()
    assert store.log is not None
    for name, size in (("small", 100_000), ("large", 5 << 20)):
        await put(store, name, bytes(size))
        end = store.log.active.end
        assert (await put(store, name, bytes(size))).outcome is Outcome.UNCHANGED
        assert store.log.active.end - end < 200
    await store.aclose()
    assert len(files(store, ".blob")) == 1


async def test_a_head_that_is_damaged_is_reported_and_written_anew_by_a_put(
    opened: Opener,
) -> None:
    store = await opened()
    await put(store, "a", b"data")
    path, at = place_of(store, "a")
    flip(path, at - len("a") - 4)  # the checksum of the head
    assert await data_of(store, "a") == b"data"
    assert isinstance(await failure(store, "a"), Corrupt)
    await put(store, "a", b"data")
    assert await failure(store, "a") is None


@pytest.mark.parametrize("part", range(4))
async def test_a_flipped_bit_anywhere_is_never_served(
    tmp_path: Path, opened: Opener, part: int
) -> None:
    """In segments, blobs' own files, index and small files: right bytes, or an error."""
    rng = random.Random(part)
    contents = {f"n{n}": rng.randbytes(rng.choice([0, 5, 3_000, 90_000])) for n in range(20)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_module, "CHUNK", 50_000)
        store = await opened(segment_size=60_000)
        for name, data in contents.items():
            await put(store, name, data)
        await store.aclose()
    paths = sorted(f for f in (tmp_path / "v").rglob("*") if f.is_file() and f.stat().st_size)
    paths = [f for f in paths if f.name not in ("reserve", "lock") and "LOG" not in f.name]
    for at in range(15):
        copy = tmp_path / str(at)
        shutil.copytree(tmp_path / "v", copy, symlinks=True)
        path = copy / rng.choice(paths).relative_to(tmp_path / "v")
        offset, mask = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        flip(str(path), offset, mask)
        try:
            store = await opened(copy)
        except BadVolume:
            continue
        for name, data in contents.items():
            with suppress(Corrupt, Unavailable):
                assert await data_of(store, name) == data, (path, offset)
        await store.aclose()
        shutil.rmtree(copy)


async def test_reindex_says_of_a_lost_head_that_the_copy_is_damaged(opened: Opener) -> None:
    store = await opened()
    for name in ("a", "b", "c"):
        await put(store, name, name.encode() * 100, stamp=1 << 20)
    await put(store, "b", b"later", stamp=1 << 30)
    path, at = place_of(store, "b")
    await put(store, "d", b"behind")
    await store.aclose()
    flip(path, at - 10)
    found = reindex(store.path)
    assert (found.blobs, len(found.damaged)) == (4, 2)
    assert "b: no segment shows its last write any more" in found.damaged
    store = await opened()
    with pytest.raises(Corrupt):
        await store.get("b")
    for name in ("a", "c"):
        assert await data_of(store, name) == name.encode() * 100
    await put(store, "b", b"later", stamp=1 << 30)
    assert await data_of(store, "b") == b"later"


async def test_reindex_keeps_a_large_blob_whose_touch_is_lost_until_it_is_replaced(
    opened: Opener,
) -> None:
    store = await opened()
    content = bytes(5 << 20)
    await put(store, "big", content, stamp=1 << 20)
    entry = store._live("big")
    assert entry.head is not None
    await put(store, "behind")
    await store.aclose()
    flip(store.folder.file(entry.head[0], ".seg"), entry.head[1] + 40)
    for _ in range(2):
        reindex(store.path)
        store = await opened()
        assert files(store, ".blob") == [entry.data[0]]
        with pytest.raises(Corrupt):
            await store.stat("big")
        await store.aclose()
    store = await opened()
    await put(store, "big", content, stamp=1 << 20)
    assert await data_of(store, "big") == content
    await store.aclose()
    (left,) = files(store, ".blob")
    assert left != entry.data[0]


async def test_a_number_that_only_the_old_index_knows_is_not_given_again(opened: Opener) -> None:
    store = await opened()
    await put(store, "big", bytes(5 << 20))
    entry = store._live("big")
    assert entry.head is not None
    await put(store, "behind")
    await store.aclose()
    flip(store.folder.file(entry.head[0], ".seg"), entry.head[1] + 40)
    os.unlink(store.folder.file(entry.data[0], ".blob"))
    reindex(store.path)
    store = await opened()
    assert store.catalog.take_number() > entry.data[0]


async def test_a_name_that_cannot_be_never_leads_to_the_blob_of_another(opened: Opener) -> None:
    store = await opened()
    packed = "amgl" * 8  # both names have one partition, so one key
    await put(store, packed.encode().hex())
    for ask in (store.get, store.stat):
        with pytest.raises(InvalidName):
            await ask("\0" + packed)
    assert await data_of(store, packed.encode().hex()) == b"data"


async def test_quarantine_survives_reindex_and_a_missing_segment_is_damage(
    opened: Opener,
) -> None:
    store = await opened()
    await put(store, "a", b"a" * 100)
    await put(store, "b", b"b" * 100)
    flip(*place_of(store, "a"))
    with pytest.raises(Corrupt):
        await store.get("a")
    for broken_off in (False, True):
        await store.aclose()
        if broken_off:
            os.rename(store.folder.index, store.folder.old_index)
        else:
            reindex(store.path)
        store = await opened()
        assert not os.path.exists(store.folder.old_index)
        with pytest.raises(Corrupt):
            await store.stat("a")
        assert await data_of(store, "b") == b"b" * 100


async def test_a_flipped_bit_in_the_head_of_an_empty_segment_does_not_matter(
    opened: Opener,
) -> None:
    for offset in range(0, 64, 5):
        store = await opened()
        assert store.log is not None
        path = store.folder.file(store.log.active.number, ".seg")
        await store.aclose()
        flip(path, offset)
    store = await opened()
    await put(store, "a", b"1")
    await store.aclose()
    reindex(store.path)
    store = await opened()
    assert await data_of(store, "a") == b"1"


@pytest.mark.parametrize("size", [4, 10_000])
async def test_a_segment_that_cannot_be_read_at_all_does_not_keep_the_volume_from_opening(
    opened: Opener, size: int
) -> None:
    store = await opened()
    assert store.log is not None
    path = store.folder.file(store.log.active.number, ".seg")
    if size > 4:
        await put(store, "a")
    await store.aclose()
    await (await opened()).aclose()  # the index knows the segment now
    with open(path, "r+b") as file:
        file.write(bytes(min(size, os.path.getsize(path))))
    store = await opened()
    await put(store, "b")
    await store.aclose()
    for _ in range(2):
        store = await opened()
        assert await data_of(store, "b") == b"data"
        with pytest.raises(Corrupt if size > 4 else NotFound):
            await store.get("a")
        await store.aclose()
        reindex(store.path)


async def test_a_disk_that_cannot_read_a_copy_loses_that_copy_only(opened: Opener) -> None:
    store = await opened()
    await put(store, "a", b"a" * 10)
    await put(store, "b", b"b" * 10)
    reading = store._disk.read_record
    at = store._live("a").data[1]

    def failing(fd: int, offset: int, *record: Any) -> Any:
        if offset == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return reading(fd, offset, *record)

    store._disk.read_record = failing  # type: ignore[method-assign]
    with pytest.raises(Corrupt):
        await store.get("a")
    assert await data_of(store, "b") == b"b" * 10
    with pytest.raises(DolmenError):
        await store.stat("a")


async def test_a_segment_that_was_cut_short_is_named_and_its_blobs_are_damaged(
    opened: Opener,
) -> None:
    store = await opened()
    await put(store, "a", b"1")
    path, _ = place_of(store, "a")
    await store.aclose()
    os.truncate(path, 70)
    with pytest.raises(BadVolume, match="reindex"):
        await opened()
    assert reindex(store.path).damaged == ["a: no segment shows its last write any more"]
    store = await opened()
    with pytest.raises(Corrupt):
        await store.get("a")
    await put(store, "a", b"1")
    assert await data_of(store, "a") == b"1"
