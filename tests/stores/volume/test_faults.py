"""A disk that fails at any one call: every caller gets an answer, and it is true."""

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator

import lmdb
import pytest

from dolmen.errors import BadVolume, Corrupt, DolmenError, NotFound, OutcomeUnknown, Unavailable
from dolmen.payload import Bytes, Stream
from dolmen.stores.volume import VolumeStore, open_volume
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.index import Index, mark_of_doubt
from dolmen.stores.volume.reindex import reindex

ABSENT = None
DAMAGED = b"its copy could not be read, and is quarantined"
STEP = int(os.environ.get("DOLMEN_FAULT_STEP", "7"))
"""Of the calls of a workload every seventh is made to fail; 1 tries all of them."""
SIZES = (10, 5_000, 90_000, 300_000, 5_000_000)


def streamed(data: bytes) -> Stream:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]

    return Stream(len(data), pieces)


async def content(store: VolumeStore, name: str) -> bytes | None:
    try:
        blob = await store.get(name)
        return b"".join([bytes(piece) async for piece in blob.payload])
    except NotFound:
        return ABSENT
    except Corrupt:
        return DAMAGED


async def workload(store: VolumeStore, rng: random.Random) -> dict[str, set[bytes | None]]:
    """Concurrent writes of many kinds; what may stand under each name afterwards."""
    may: dict[str, set[bytes | None]] = {}

    async def write(name: str, size: int) -> None:
        data = rng.randbytes(size)
        may[name] = {ABSENT}
        try:
            await store.put(name, streamed(data) if size % 3 else Bytes(data))
            may[name] = {data}
            if size == 10:
                await store.delete(name)
                may[name] = {ABSENT}
        except OutcomeUnknown:
            may[name] |= {data, ABSENT}
        except DolmenError:
            pass

    names = [(f"n{number}-{size}", size) for size in SIZES for number in range(2)]
    await asyncio.gather(*(write(name, size) for name, size in names))
    for call in (store.digests(), store.notes(), store.condition(), store.note("k", b"v")):
        with contextlib.suppress(DolmenError):
            await call
    for name in may:
        with contextlib.suppress(DolmenError):
            found = await content(store, name)
            if found is DAMAGED:
                may[name].add(found)
            assert found in may[name]
    return may


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EMFILE])
async def test_any_call_may_fail(tmp_path, failing, descriptors, error, stays):
    for number in range(1, 2000, STEP):
        before = descriptors()
        disk = failing()
        path = str(tmp_path / str(number))
        store = await open_volume(path, disk=disk, segment_size=1 << 20)
        disk.arm(number, error, stays=stays)
        rng = random.Random(number)
        may = await asyncio.wait_for(workload(store, rng), 20)
        all_went_well = disk.left > 1
        if number // STEP % 2:
            disk.arm(0)
        await asyncio.wait_for(store.aclose(), 20)
        del store
        assert descriptors() == before, f"call {number}"
        if os.path.exists(mark_of_doubt(f"{path}/index")):
            reindex(path)
        store = await open_volume(path, segment_size=1 << 20)
        for name, allowed in may.items():
            assert await content(store, name) in allowed, f"call {number}: {name}"
        listed = {info.name async for info in store.list()}
        assert listed == {
            name for name in may if await content(store, name) not in (ABSENT, DAMAGED)
        }
        await store.aclose()
        if all_went_well:
            return
    pytest.fail("the workload has no end")


async def test_an_index_whose_flush_failed_is_not_used_before_it_was_rebuilt(tmp_path):
    class Unflushed(Disk):
        fails = False

        def settle_index(self, env):
            if self.fails:
                self.fails = False  # the kernel reports it once; the next flush "succeeds"
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().settle_index(env)

    disk, path = Unflushed(), str(tmp_path / "v")
    store = await open_volume(path, disk=disk, segment_size=1 << 20)
    disk.fails = True
    blobs = {f"n{number}": bytes([number]) * 300_000 for number in range(20)}
    with contextlib.suppress(Unavailable):
        for name, data in blobs.items():  # more than a segment: one is sealed
            await store.put(name, Bytes(data))
            await store.digests()
    assert not disk.fails
    await store.put("later", Bytes(b"kept"))  # the segments do not depend on it
    with pytest.raises(Unavailable, match="dolmen reindex"):
        await store.digests()
    assert "dolmen reindex" in (await store.condition()).reasons[0]
    assert await content(store, "n0") == blobs["n0"]
    put = [name for name in blobs if await content(store, name) is not ABSENT]
    await store.aclose()
    assert os.listdir(f"{path}/sealed") == []
    with pytest.raises(BadVolume, match="dolmen reindex"):
        await open_volume(path)
    reindex(path)
    store = await open_volume(path)
    assert await content(store, "later") == b"kept"
    for name in put:
        assert await content(store, name) == blobs[name]
    await store.aclose()


def test_an_index_whose_commit_failed_is_doubtful_and_one_that_is_full_is_not(tmp_path):
    class Commit:
        def __init__(self, transaction, error):
            self._transaction, self._error = transaction, error

        def __getattr__(self, name):
            return getattr(self._transaction, name)

        def commit(self):
            self._transaction.abort()
            raise self._error

    os.mkdir(tmp_path / "index")
    index = Index(Disk(), str(tmp_path / "index"))
    # As LMDB raises them for ENOSPC and EIO.
    for error, doubtful in ((lmdb.DiskError("no space"), False), (lmdb.Error("I/O error"), True)):
        change = index.slice()
        change._transaction = Commit(change._transaction, error)
        with pytest.raises(lmdb.Error), change:
            pass
        assert index.doubtful() is doubtful
    index.close()
