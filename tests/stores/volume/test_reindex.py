"""Reindex: the segments alone give the index that was, whenever it is broken off."""

import os
import random
import shutil
import tracemalloc

import pytest

from dolmen.errors import BadVolume, Corrupt, NotFound
from dolmen.names import checksum_of
from dolmen.record import block_sums
from dolmen.stamps import Clock
from dolmen.stores.volume.reindex import reindex
from dolmen.stores.volume.volume import VolumeStore
from dolmen.stores.volume.write import Op, Write
from dolmen.testing.crash import PowerCut, SimulatedDisk, commit

SEGMENT = 4_000


def put(name: str, data: bytes, stamp: int | None = None) -> Write:
    return Write(
        Op.PUT,
        name,
        stamp=stamp,
        kind=1,
        checksum=checksum_of(data),
        data=data,
        sums=block_sums(data),
        length=len(data),
    )


def simulated(root, seed: int) -> SimulatedDisk:
    os.makedirs(root)
    return SimulatedDisk(str(root), rng=random.Random(seed))


def opened(disk: SimulatedDisk, *, segment_size: int = SEGMENT) -> VolumeStore:
    wall = iter(range(1_700_000_000_000, 1_800_000_000_000))
    return VolumeStore(
        disk.root + "/volume",
        disk=disk,
        clock=Clock(lambda: next(wall)),
        now=lambda: 1_000_000.0,
        segment_size=segment_size,
    )


def filled(disk: SimulatedDisk) -> dict[str, int]:
    """Names and stamps; some sealed segments, deletes and removals."""
    store = opened(disk)
    for number in range(20):
        commit(store._log, put(f"n{number}", bytes([number]) * 900))
        if number % 5 == 4:
            store._merge.merge()
    commit(store._log, Write(Op.DELETE, "n3", stamp=None))
    stamp = store._live("n7").stamp
    commit(store._log, Write(Op.REMOVE, "n7", stamp=stamp))
    store._index.note("scrubbed", b"yesterday")
    held = shown(store)
    store._close()
    return held


def shown(store: VolumeStore) -> dict[str, int]:
    found = {}
    for number in range(20):
        try:
            found[f"n{number}"] = store._live(f"n{number}").stamp
        except NotFound as absent:
            found[f"n{number}"] = -absent.stamp
    return found


def test_what_a_killed_process_had_not_flushed_is_flushed_before_it_is_believed(tmp_path):
    for seed in range(40):
        disk = simulated(tmp_path / str(seed), seed)
        store = opened(disk)
        commit(store._log, put("n0", b"answered" * 100, stamp=5))
        batch, _ = store._log.claim([put("n0", b"not yet" * 100, stamp=9)])
        store._log.appender.append(batch.parts, batch.size, through=False)
        for let_go in (store._executor.shutdown, store._index.close, store._recent.close):
            let_go()
        disk.kill()
        reindex(disk.root + "/volume", disk=disk)
        disk = disk.power_cut(str(tmp_path / f"{seed}-after"))
        store = opened(disk)
        store._reader._failed = lambda name, entry: None
        entry = store._live("n0")
        assert store._reader.cached(b"n0", entry) in (b"answered" * 100, b"not yet" * 100)
        store._close()


@pytest.mark.parametrize(
    ("at", "stand"), [(40, {"n2"}), (10_000, {"n0", "n1", "n2"})], ids=["header", "data"]
)
@pytest.mark.parametrize("lost", [False, True], ids=["index there", "index lost"])
def test_what_the_disk_has_lost_of_a_segment_does_not_keep_the_rest(tmp_path, at, stand, lost):
    disk = simulated(tmp_path / "disk", 1)
    store = opened(disk)
    commit(store._log, put("n0", b"small"))
    commit(store._log, put("n1", b"long" * 5_000))
    commit(store._log, put("n2", b"in another segment"))
    store._close()
    path = disk.root + "/volume"
    [first, _] = sorted(name for name in disk._names if "/sealed/" in name)
    disk.spoil(first, at)
    if lost:
        shutil.rmtree(path + "/index")
    result = reindex(path, disk=disk)
    assert bool(result.damaged) is (stand == {"n2"})
    store = opened(disk)
    for name in ("n0", "n1", "n2"):
        if name in stand:
            assert not store._live(name).damaged
        else:
            with pytest.raises(NotFound if lost else Corrupt):
                store._live(name)
    store._close()


@pytest.mark.parametrize("lost", [False, True], ids=["index there", "index lost"])
def test_broken_off_at_any_operation_and_repeated_it_gives_the_index_that_was(tmp_path, lost):
    for seed in range(1, 400):
        disk = simulated(tmp_path / str(seed), seed)
        held = filled(disk)
        path = disk.root + "/volume"
        if lost:
            shutil.rmtree(path + "/index")
        disk.cut_after(seed)
        try:
            reindex(path, disk=disk)
            done = True
        except PowerCut:
            done = False
            if seed % 2:
                disk.kill()
            else:
                disk = disk.power_cut(str(tmp_path / f"{seed}-after"))
                path = disk.root + "/volume"
        disk._countdown = None
        disk.dead = False
        # Opened before the repetition, it shows what was, or says that the index is missing.
        try:
            store = opened(disk)
        except BadVolume:
            assert lost
            reindex(path, disk=disk)
            store = opened(disk)
        assert shown(store) == held, f"cut at {seed}"
        store._merge.merge()
        digests = store._index.digests()
        store._close()
        reindex(path, disk=disk)
        store = opened(disk)
        assert shown(store) == held
        assert store._index.digests() == digests
        if not lost:
            assert store._index.notes() == {"scrubbed": b"yesterday"}
        store._close()
        if done:
            return
    pytest.fail("reindex has no end")


def test_its_memory_does_not_grow_with_the_records_of_a_segment(tmp_path, monkeypatch):
    monkeypatch.setattr("dolmen.stores.volume.reindex._ENTRIES", 1_000)
    disk = simulated(tmp_path / "disk", 1)
    store = opened(disk, segment_size=1 << 30)
    for first in range(0, 30_000, 500):
        names = [f"n{number:032}" for number in range(first, first + 500)]
        commit(store._log, *[Write(Op.DELETE, name, stamp=5) for name in names])
    store._merge.merge()
    digests = store._index.digests()
    store._close()
    tracemalloc.start()
    assert reindex(disk.root + "/volume", disk=disk).records == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    store = opened(disk)
    assert store._index.digests() == digests
    store._close()
    assert peak < 20 << 20
