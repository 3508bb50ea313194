"""A disk that fails at any one call: every caller gets an answer, and it is true."""

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator

import pytest

from dolmen.errors import DolmenError, NotFound, OutcomeUnknown
from dolmen.payload import Bytes, Stream
from dolmen.stores.volume import VolumeStore, open_volume

ABSENT = None
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
    except NotFound:
        return ABSENT
    return b"".join([bytes(piece) async for piece in blob.payload])


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
            assert await content(store, name) in may[name]
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
        store = await open_volume(path, segment_size=1 << 20)
        for name, allowed in may.items():
            assert await content(store, name) in allowed, f"call {number}: {name}"
        listed = {info.name async for info in store.list()}
        assert listed == {name for name in may if await content(store, name) is not ABSENT}
        await store.aclose()
        if all_went_well:
            return
    pytest.fail("the workload has no end")
