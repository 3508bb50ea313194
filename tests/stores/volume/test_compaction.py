"""Compaction gives room back, and changes nothing that anybody can see."""

import asyncio
import random
from pathlib import Path

import pytest

from dolmen.errors import Corrupt, NotFound, OutcomeUnknown
from dolmen.pace import Pace
from dolmen.store import BlobInfo, Listing, Remove, Write
from dolmen.stores.volume import Volume
from dolmen.stores.volume.compaction import Compactor, compaction_in
from dolmen.stores.volume.recovery import reindex
from stores.volume.conftest import Opener, data_of, failure, files, flip, place_of, put

SEGMENT = 50_000


async def everything(store: Volume) -> list[BlobInfo]:
    return [info async for info in store.list(Listing(tombstones=True))]


async def filled(opened: Opener) -> tuple[Volume, dict[str, bytes]]:
    """Many segments, most of them dead: replaced, deleted, removed, touched."""
    rng = random.Random(1)
    store = await opened(segment_size=SEGMENT, now=lambda: 1_000.0)
    contents: dict[str, bytes] = {}
    for n in range(120):
        name, data = f"n{n}", rng.randbytes(4_000)
        await put(store, name, data, 1 << 20)
        contents[name] = data
    for n, name in enumerate(list(contents)):
        stamp = 1 << 21
        if n % 5 == 1:
            info = await store.stat(name)
            await store.write(
                Write.touch(name, stamp=stamp, checksum=info.checksum, metadata=b"\1\1\0ab")
            )
        elif n % 5 == 2:
            await store.write(Write.tombstone(name, stamp=stamp))
            del contents[name]
        elif n % 5 == 3:
            await store.remove_many([Remove(name, 1 << 20)])
            del contents[name]
        elif n % 5 == 4:
            contents[name] = rng.randbytes(100)
            await put(store, name, contents[name], stamp)
    return store, contents


async def test_room_comes_back_and_nothing_changes(opened: Opener) -> None:
    store, contents = await filled(opened)
    before, digests, first = await everything(store), await store.digests(), files(store)
    done = await Compactor(store, now=lambda: 5.0).compact()
    assert done.segments > 5
    assert len(files(store)) < len(first) - 3
    noted = compaction_in(await store.notes())
    assert noted is not None
    assert (noted.looked, noted.reclaimed, noted.failing) == (5.0, done.reclaimed, None)
    assert (await Compactor(store).compact()).segments == 0
    for again in range(2):
        assert await everything(store) == before
        assert await store.digests() == digests
        for name, data in contents.items():
            assert await data_of(store, name) == data
        await store.aclose()
        if again == 0:
            reindex(store.path)
        store = await opened(segment_size=SEGMENT)


async def test_it_makes_the_volume_smaller_until_only_what_is_live_is_left(
    opened: Opener,
) -> None:
    store, contents = await filled(opened)
    for name in contents:
        await store.write(Write.tombstone(name, stamp=1 << 30))
    tombstones = [Remove(info.name, info.stamp) for info in await everything(store)]
    assert all(await store.remove_many(tombstones))
    for _ in range(6):
        await put(store, "filler", bytes(SEGMENT))  # begins another segment
        await store.write(Write.tombstone("filler"))
        await Compactor(store).compact()
    assert len(files(store)) <= 3
    assert [info.name for info in await everything(store)] == ["filler"]


@pytest.mark.parametrize("carried", [True, False])
async def test_a_removal_is_carried_while_an_older_segment_has_what_it_removed(
    opened: Opener, carried: bool
) -> None:
    store = await opened(segment_size=SEGMENT)
    await put(store, "gone", b"1", 1)
    await put(store, "kept", bytes(SEGMENT))
    assert await store.remove_many([Remove("gone", 1)]) == [True]
    await put(store, "dead", bytes(SEGMENT))
    await store.write(Write.tombstone("dead"))
    first, second, _ = files(store)
    with pytest.MonkeyPatch.context() as patch:
        if not carried:  # what would be wrong
            read = Compactor._read_heads
            patch.setattr(Compactor, "_read_heads", lambda self, n: (read(self, n)[0], []))
        await Compactor(store).compact()
    assert first in files(store)
    assert second not in files(store)
    await store.aclose()
    store._disk.remove_index(store.folder.index)
    store = await opened()
    names = {info.name for info in await everything(store)}
    assert names == {"kept", "dead"} | (set() if carried else {"gone"})


async def test_what_is_written_meanwhile_stays(opened: Opener) -> None:
    store, contents = await filled(opened)
    rng = random.Random(2)

    async def write() -> None:
        for n in range(150):
            name = rng.choice(list(contents))
            contents[name] = rng.randbytes(200)
            await put(store, name, contents[name], (1 << 40) + n)
            assert await data_of(store, name) == contents[name]

    await asyncio.gather(write(), Compactor(store).compact())
    for _ in range(2):
        for name, data in contents.items():
            assert await data_of(store, name) == data
        await store.aclose()
        reindex(store.path)
        store = await opened()


async def test_a_reader_goes_on_while_the_segment_is_removed(opened: Opener) -> None:
    store = await opened(segment_size=SEGMENT)
    data = random.Random(3).randbytes(400_000)
    await put(store, "a", data)
    pieces = aiter((await store.get("a")).payload)
    got = bytes(await anext(pieces))
    await store.write(Write.tombstone("a"))
    assert (await Compactor(store).compact()).segments == 1
    async for piece in pieces:
        got += bytes(piece)
    assert got == data


async def test_a_damaged_copy_stays_damaged_and_its_segment_goes(opened: Opener) -> None:
    store = await opened(segment_size=SEGMENT)
    for name in ("seen", "unseen", "headless"):
        await put(store, name, name.encode(), 1 << 20)
    await put(store, "filler", bytes(SEGMENT))
    await store.write(Write.tombstone("filler"))
    first = files(store)[0]
    flip(*place_of(store, "seen"))
    flip(*place_of(store, "unseen"))
    path, at = place_of(store, "headless")
    flip(path, at - 12)
    with pytest.raises(Corrupt):
        await store.get("seen")
    await Compactor(store).compact()
    assert first not in files(store)
    for _ in range(2):
        for name in ("seen", "unseen"):
            with pytest.raises(Corrupt):
                await store.get(name)
        assert await data_of(store, "headless") == b"headless"
        assert await failure(store, "headless") is None
        await store.aclose()
        reindex(store.path)
        store = await opened()
    assert (await put(store, "seen", b"seen", 1 << 20)).stamp == 1 << 20
    assert await data_of(store, "seen") == b"seen"


async def test_a_large_blob_goes_when_it_is_deleted_or_replaced(opened: Opener) -> None:
    store = await opened()

    for n in range(2):
        await put(store, "a", bytes([n]) * (5 << 20), n + 1)
    await put(store, "b", bytes(5 << 20), 1)
    await put(store, "c", bytes(5 << 20), 1)
    for name in ("b", "c"):
        await store.write(Write.tombstone(name, stamp=2))
    assert store.log is not None
    await store.log.close()
    assert len(files(store, ".blob")) == 1
    await store.aclose()
    store = await opened()
    assert not store.catalog.dead
    assert await store.remove_many([Remove("a", 2)]) == [True]
    await store.aclose()
    await (await opened()).aclose()
    assert files(store, ".blob") == []
    with pytest.raises(NotFound):
        await (await opened()).stat("a")


async def test_it_keeps_to_its_bandwidth(opened: Opener) -> None:
    store, _ = await filled(opened)
    waits: list[float] = []
    time = 0.0

    async def pause(seconds: float) -> None:
        nonlocal time
        waits.append(seconds)
        time += seconds

    compactor = Compactor(store, pace=Pace(100_000, now=lambda: time), pause=pause)
    done = await compactor.compact()
    assert sum(waits) >= 2 * done.carried / 100_000 - 1


async def test_a_pass_that_fails_is_noted_and_leaves_the_files(
    tmp_path: Path, opened: Opener
) -> None:
    store, contents = await filled(opened)
    assert store.log is not None
    before = files(store)

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    store.log.active.folder.disk.write = broken  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await Compactor(store).compact()
    del store.log.active.folder.disk.write
    assert set(before) <= set(files(store))
    assert await data_of(store, "n0") == contents["n0"]
