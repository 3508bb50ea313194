"""Compaction: the room of what was deleted or replaced comes back, and what stands stays."""

import asyncio
import errno
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from dolmen.errors import Busy, Corrupt, DolmenError, Full, NotFound, Unavailable
from dolmen.payload import Bytes
from dolmen.stores.volume import VolumeStore, open_volume
from dolmen.stores.volume.carry import Step
from dolmen.stores.volume.compact import Compactor
from dolmen.stores.volume.compaction import Compacting
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.reindex import reindex
from dolmen.testing.compacting import compactor_of
from dolmen.testing.conformance.material import recomputed

SEGMENT = 1 << 20


def sealed(path: Path) -> dict[str, int]:
    return {found.name: found.stat().st_size for found in (path / "sealed").rglob("*.seg")}


async def filled(
    path: Path, count: int = 60, size: int = 100_000, *, disk: Disk | None = None
) -> tuple[VolumeStore, dict]:
    """Several sealed segments."""
    rng = random.Random(1)
    store = await open_volume(str(path), disk=disk, segment_size=SEGMENT)
    held = {f"n{number}": rng.randbytes(size) for number in range(count)}
    for name, data in held.items():
        await store.put(name, Bytes(data))
    await store._merged()
    return store, held


def compactor(store: VolumeStore) -> Compactor:
    return compactor_of(store, segment_size=SEGMENT)


def compact(store: VolumeStore) -> int:
    return sum(step.dropped - step.carried for step in compactor(store).steps())


async def content(store: VolumeStore, name: str) -> bytes:
    return b"".join([bytes(piece) async for piece in (await store.get(name)).payload])


async def same_after_reindex(path: Path, store: VolumeStore, *, index: bool = True) -> VolumeStore:
    """Reindex, from the segments alone unless the old `index` is there; all must be as it was."""
    digests, usage = await store.digests(), store._index.usage()
    await store.aclose()
    if not index:
        for file in (path / "index").iterdir():
            file.unlink()
        (path / "index").rmdir()
    reindex(str(path))
    store = await open_volume(str(path), segment_size=SEGMENT)
    assert await store.digests() == digests
    assert digests == await recomputed(store)
    assert store._index.usage() == usage
    return store


async def test_room_comes_back_and_what_stands_stays(tmp_path):
    store, held = await filled(tmp_path / "v")
    before = sum(sealed(tmp_path / "v").values())
    stamps = {}
    for number in range(60):
        if number % 4:
            await store.delete(f"n{number}")
        elif number % 8:
            info = await store.stat(f"n{number}")
            stamps[f"n{number}"] = info.stamp + 7
            await store.touch(
                f"n{number}", stamp=info.stamp + 7, checksum=info.checksum, meta=b"\1\1\0ab"
            )
    arrived = (await store.stat("n0")).arrived
    won = compact(store)
    await store._merged()
    assert won > 0.6 * before
    assert sum(sealed(tmp_path / "v").values()) < 0.4 * before
    assert compact(store) == 0
    store = await same_after_reindex(tmp_path / "v", store, index=False)
    for number in range(60):
        name = f"n{number}"
        if number % 4:
            with pytest.raises(NotFound):
                await store.get(name)
        else:
            assert await content(store, name) == held[name]
            if name in stamps:
                found = await store.stat(name)
                assert (found.stamp, found.metadata) == (stamps[name], b"\1\1\0ab")
    assert (await store.stat("n0")).arrived >= arrived
    await store.aclose()


async def test_a_reader_goes_on_and_the_next_one_looks_up_again(tmp_path, monkeypatch):
    store, held = await filled(tmp_path / "v", count=8, size=700_000)
    blob = await store.get("n0")
    pieces = blob.payload.__aiter__()
    first = bytes(await pieces.__anext__())
    entry = store._live("n1")
    for number in range(2, 8):
        await store.remove(f"n{number}", if_stamp=(await store.stat(f"n{number}")).stamp)
    monkeypatch.setattr("dolmen.stores.volume.compact.THRESHOLD", 1.0)
    compact(store)
    store._look_for_gone()
    assert entry.segment not in store._files._open
    assert first + b"".join([bytes(piece) async for piece in pieces]) == held["n0"]
    looked = iter([entry])
    real = store._live
    monkeypatch.setattr(store, "_live", lambda name, **_: next(looked, None) or real(name))
    assert await content(store, "n1") == held["n1"]
    await store.aclose()


@pytest.mark.parametrize("index", [True, False], ids=["with the old index", "from segments alone"])
async def test_a_damaged_copy_stays_quarantined(tmp_path, index):
    store, held = await filled(tmp_path / "v", count=20)
    marked, unseen = store._live("n0"), store._live("n2")
    for number in range(4, 20):
        await store.delete(f"n{number}")
    [file] = (tmp_path / "v/sealed").rglob(f"{marked.segment:08x}.seg")
    with file.open("r+b") as segment:
        segment.seek(marked.offset + 1000)
        segment.write(b"damage")
        segment.seek(unseen.offset)  # its head can't be made out any more
        segment.write(b"damage")
    store._files.close()
    compact(store)
    assert file.exists()  # for the sake of the one that can still be read
    with pytest.raises(Corrupt):
        await store.get("n0")
    assert await content(store, "n2") == held["n2"]
    assert {name async for name in store.quarantined()} == {"n0"}
    await store.put("n2", Bytes(held["n2"] + b"x"), stamp=(1 << 62))
    compact(store)
    assert not file.exists()
    store = await same_after_reindex(tmp_path / "v", store, index=index)
    with pytest.raises(Corrupt):
        await store.get("n0")
    assert await content(store, "n1") == held["n1"]
    await store.put("n0", Bytes(held["n0"]), stamp=marked.stamp)
    assert await content(store, "n0") == held["n0"]
    await store.aclose()


async def test_what_can_still_be_read_though_its_head_is_damaged_is_kept_if_it_was_touched(
    tmp_path,
):
    store = await open_volume(str(tmp_path / "v"), segment_size=SEGMENT)
    put = await store.put("n0", Bytes(b"data" * 1000))
    info = await store.stat("n0")
    await store.touch("n0", stamp=put.stamp + 1, checksum=info.checksum, meta=b"")
    for _ in range(12):
        put = await store.put("gone", Bytes(os.urandom(100_000)), stamp=put.stamp + 2)
    await store._merged()
    entry = store._live("n0")
    path = store._layout.sealed_segment(entry.segment)
    with open(path, "r+b") as segment:
        segment.seek(entry.offset + 20)  # the stamp
        segment.write(b"damage")
    compact(store)
    assert await content(store, "n0") == b"data" * 1000
    await store.delete("n0")
    compact(store)
    assert not os.path.exists(path)
    await store.aclose()


async def test_its_memory_does_not_grow_with_what_a_segment_keeps(tmp_path):
    store = await open_volume(str(tmp_path / "v"), segment_size=48 << 20)
    for number in range(24):
        await store.put(f"n{number}", Bytes(os.urandom(2 << 20)))
    for number in range(14):
        await store.delete(f"n{number}")
    await store._merged()
    tracemalloc.start()
    for _ in compactor_of(store, segment_size=48 << 20).steps():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sealed(tmp_path / "v").values()) < 24 << 20
    assert peak < 16 << 20
    await store.aclose()


class Unreading(Disk):
    """A disk that refuses to read one file, from one byte on, or `one` byte alone."""

    def __init__(self):
        self._path, self._error, self._at, self._end = "", 0, 0, 0
        self._paths = {}

    def fails(self, path: str, error: int, *, at: int = 0, one: bool = False) -> None:
        self._path, self._error, self._at = path, error, at
        self._end = at + 1 if one else 1 << 62

    def open(self, path: str, *, write: bool = False) -> int:
        fd = super().open(path, write=write)
        self._paths[fd] = path
        return fd

    def read(self, fd: int, length: int, offset: int) -> bytes:
        fails = offset >= self._at if self._end == 1 << 62 else offset <= self._at < offset + length
        if self._path and self._paths.get(fd) == self._path and fails:
            raise OSError(self._error, os.strerror(self._error))
        return super().read(fd, length, offset)


class Told(Disk):
    """A disk that says it has so much room."""

    free = 1 << 40

    def space(self, path: str) -> tuple[int, int]:
        return self.free, 1 << 40


async def test_on_a_full_disk_only_what_is_wholly_dead_goes(tmp_path):
    disk = Told()
    store = await open_volume(str(tmp_path / "v"), disk=disk, segment_size=SEGMENT)
    for number in range(33):
        await store.put(f"n{number}", Bytes(os.urandom(100_000)))
    await store._merged()
    for number in range(33):
        if number != 1:
            stamp = (await store.stat(f"n{number}")).stamp
            await store.remove(f"n{number}", if_stamp=stamp)
    await store._merged()
    disk.free = 1000
    before = len(sealed(tmp_path / "v"))
    with pytest.raises(Full):
        compact(store)
    assert len(sealed(tmp_path / "v")) < before
    disk.free = 1 << 40
    compact(store)
    await store._merged()
    assert (await store.stat("n1")).size == 100_000
    await store.aclose()


async def test_segments_full_of_what_must_be_kept_are_left_alone(tmp_path, monkeypatch):
    store = await open_volume(str(tmp_path / "v"), segment_size=20_000)
    await store.put("old", Bytes(b"o" * 30_000))  # its segment stays, with all it may hold
    put = await store.put("touched", Bytes(b"data"))
    info = await store.stat("touched")
    for number in range(300):
        put = await store.put(f"n{number}", Bytes(b""))
        await store.remove(f"n{number}", if_stamp=put.stamp)
        await store.touch("touched", stamp=put.stamp + 1, checksum=info.checksum, meta=b"")
    await store._merged()
    compact(store)
    await store._merged()
    assert compact(store) == 0
    sizes = sealed(tmp_path / "v")
    assert compact(store) == 0
    assert sealed(tmp_path / "v") == sizes
    store = await same_after_reindex(tmp_path / "v", store, index=False)
    await store.aclose()


async def test_one_process_compacts_at_a_time(tmp_path):
    store, _ = await filled(tmp_path / "v")
    for number in range(60):
        await store.delete(f"n{number}")
    await store._merged()
    steps = compactor(store).steps()
    next(steps)
    with pytest.raises(Busy, match="another process"):
        next(compactor(store).steps())
    steps.close()
    await store.aclose()
    with Compacting(str(tmp_path / "v")) as volume:
        done = volume.compact(lambda _: True)
        known = volume.known()
    assert done.won > 5_000_000
    assert (known.won, known.failing) == (done.won, None)
    assert known.looked is not None
    assert sum(sealed(tmp_path / "v").values()) < 100_000


async def test_who_compacts_at_once_gets_its_turn_and_the_others_leave_it_alone(tmp_path):
    store, _ = await filled(tmp_path / "v")
    for number in range(60):
        await store.delete(f"n{number}")
    await store._merged()
    slow, fast = compactor(store), compactor(store)
    steps = slow.steps()
    next(steps)
    assert not slow.wanted_at_once()
    at_once = fast.steps(at_once=True)
    assert next(at_once) == next(at_once) == Step()
    assert slow.wanted_at_once()
    steps.close()
    assert sum(step.dropped for step in at_once) > 5_000_000
    assert not slow.wanted_at_once()
    await store.aclose()


async def test_what_is_written_meanwhile_is_not_lost(tmp_path):
    store, held = await filled(tmp_path / "v", count=200, size=20_000)
    for number in range(0, 200, 2):
        await store.delete(f"n{number}")
        del held[f"n{number}"]
    await store._merged()
    rng = random.Random(2)
    names = list(held)
    deleted = set()
    for _ in compactor(store).steps():
        name = rng.choice(names)
        if rng.random() < 0.4:
            await store.delete(name)
            deleted.add(name)
            held.pop(name, None)
        elif name not in held:
            held[name] = rng.randbytes(1000)
            deleted.discard(name)
            await store.put(name, Bytes(held[name]))
        else:
            info = await store.stat(name)
            await store.touch(name, stamp=info.stamp + 9, checksum=info.checksum, meta=b"")
    store = await same_after_reindex(tmp_path / "v", store, index=False)
    for name, data in held.items():
        assert await content(store, name) == data
    for name in deleted:
        with pytest.raises(NotFound):
            await store.stat(name)
    await store.aclose()


async def test_a_segment_that_can_not_be_read_does_not_hold_up_the_others(tmp_path):
    disk = Unreading()
    store, held = await filled(tmp_path / "v", disk=disk)
    for number in range(60):
        if number % 5:
            await store.delete(f"n{number}")
            del held[f"n{number}"]
    await store._merged()
    [(first, _), *others] = compactor(store).candidates()
    assert others
    for error in (errno.EIO, errno.ENOMEM):
        disk.fails(store._layout.sealed_segment(first), error)
        compact(store)
        await store._merged()
        left = [number for number, _ in compactor(store).candidates()]
        assert left == [first]
    disk.fails("", 0)
    assert compact(store) > 0
    for name, data in held.items():
        assert await content(store, name) == data
    await store.aclose()


@pytest.mark.parametrize(("error", "lost"), [(errno.EIO, True), (errno.ENOMEM, False)])
async def test_only_what_the_disk_has_lost_is_damaged(tmp_path, error, lost):
    """Any other refusal may pass, so the segment stays."""
    disk = Unreading()
    store, held = await filled(tmp_path / "v", disk=disk, count=20)
    entry = store._live("n1")
    for number in range(20):
        if number != 1:
            await store.remove(f"n{number}", if_stamp=(await store.stat(f"n{number}")).stamp)
    await store._merged()
    path = store._layout.sealed_segment(entry.segment)
    disk.fails(path, error, at=entry.offset + entry.data_start(b"n1"))
    compact(store)
    disk.fails("", 0)
    await store._merged()
    assert os.path.exists(path) is not lost
    if lost:
        with pytest.raises(Corrupt):
            await content(store, "n1")
    else:
        assert await content(store, "n1") == held["n1"]
    await store.aclose()


@pytest.mark.parametrize(("at", "gone"), [(5_000, True), (-50, False)], ids=["data", "head"])
async def test_one_page_that_the_disk_has_lost_costs_no_other_blob(tmp_path, at, gone):
    """A segment with a head that can't be read stays: it may be that of a removal."""
    disk = Unreading()
    store, held = await filled(tmp_path / "v", disk=disk, count=12)
    entry = store._live("n4")
    for number in (0, 1, 2, 3, 6, 7, 8, 9):
        await store.delete(f"n{number}")
        del held[f"n{number}"]
    await store._merged()
    path = store._layout.sealed_segment(entry.segment)
    disk.fails(path, errno.EIO, at=entry.offset + entry.data_start(b"n4") + at, one=True)
    compact(store)
    assert os.path.exists(path) is not gone
    lost = held.pop("n4")
    for name, data in held.items():
        assert await content(store, name) == data
    if gone:
        with pytest.raises(Corrupt):
            await content(store, "n4")
    await store.put("n4", Bytes(lost), stamp=entry.stamp)
    assert await content(store, "n4") == lost
    await store.aclose()


@pytest.mark.parametrize("error", [Full, Unavailable])
def test_why_a_pass_was_broken_off_is_noted_until_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[DolmenError]
) -> None:
    asyncio.run(_made(tmp_path / "v"))

    def steps(_compactor, *, at_once):
        raise error("no room")
        yield

    with Compacting(str(tmp_path / "v")) as volume:
        with monkeypatch.context() as patch:
            patch.setattr(Compactor, "steps", steps)
            with pytest.raises(error):
                volume.compact(lambda _: True)
        assert volume.known().failing == "no room"
        assert volume.known().looked is None
        volume.compact(lambda _: True)
        assert volume.known().failing is None
        assert volume.known().looked is not None


async def _made(path):
    store, _ = await filled(path, count=1)
    await store.aclose()
