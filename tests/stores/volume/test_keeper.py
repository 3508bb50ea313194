"""A keeper that fails is told in the condition until it works again; what is put stands."""

import asyncio
import errno
import os
import resource
import signal

import lmdb

from dolmen.payload import Bytes
from dolmen.stores.volume import VolumeStore, keeper, open_volume, volume
from dolmen.stores.volume.disk import Disk


async def told(store: VolumeStore, *, failing: bool) -> str:
    """What the condition tells once the keeper fails, or works again."""
    async with asyncio.timeout(20):
        while bool((condition := await store.condition()).reasons) is not failing:
            await asyncio.sleep(0.05)
    assert condition.writable
    return " ".join(condition.reasons)


class Unsettling(Disk):
    """A disk too full to settle an index as long as it `fails`."""

    fails = False

    def settle_index(self, env: lmdb.Environment) -> None:
        if self.fails:
            raise OSError(errno.ENOSPC, "no space left")
        super().settle_index(env)


async def test_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(volume, "PAUSE", 0.01)
    disk = Unsettling()
    store = await open_volume(str(tmp_path / "v"), disk=disk, segment_size=1 << 20)
    disk.fails = True
    await store.put("first", Bytes(b"1" * (2 << 20)))  # its segment is full, and to be sealed
    assert "no space left" in await told(store, failing=True)
    await store.put("second", Bytes(b"2"))
    disk.fails = False
    assert await told(store, failing=False) == ""
    assert len(list((tmp_path / "v/sealed").rglob("*.seg"))) == 1
    await store.aclose()


async def test_in_a_process_that_can_not_begin(tmp_path, descriptors):
    before = descriptors()
    store = await open_volume(str(tmp_path / "v"), apart=True)
    index = tmp_path / "v/index"
    index.rename(tmp_path / "index")
    index.touch()
    os.kill(store._keeper.process.pid, signal.SIGKILL)
    assert "status -9" in await told(store, failing=True)
    async with asyncio.timeout(20):
        while "Not a directory" not in await told(store, failing=True):
            await asyncio.sleep(0.05)
    await store.put("name", Bytes(b"data"))
    index.unlink()
    (tmp_path / "index").rename(index)
    assert await told(store, failing=False) == ""
    async with asyncio.timeout(20):
        while store._recent.count():
            await asyncio.sleep(0.05)
    await store.aclose()
    assert descriptors() == before


async def test_in_a_process_that_can_not_write(tmp_path):
    store = await open_volume(str(tmp_path / "v"), apart=True)
    resource.prlimit(store._keeper.process.pid, resource.RLIMIT_FSIZE, (0, 0))
    await store.put("name", Bytes(b"data"))
    assert "File too large" in await told(store, failing=True)
    assert await told(store, failing=False) == ""
    await store.aclose()


async def test_one_that_can_not_be_started_again_for_a_while(tmp_path, monkeypatch):
    store = await open_volume(str(tmp_path / "v"), apart=True)
    os.kill(store._keeper.process.pid, signal.SIGKILL)
    monkeypatch.setattr(keeper.sys, "executable", str(tmp_path / "none"))
    async with asyncio.timeout(20):
        while "can't be started" not in await told(store, failing=True):
            await asyncio.sleep(0.05)
    monkeypatch.undo()
    assert await told(store, failing=False) == ""
    await store.aclose()
