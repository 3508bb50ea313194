"""A process that is killed at any moment loses nothing it had answered: real files, real index."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dolmen.errors import NotFound
from dolmen.store import Failed
from dolmen.stores.volume import open_volume
from dolmen.stores.volume.recovery import reindex
from stores.volume.conftest import Opener, data_of

KILLS = int(os.environ.get("DOLMEN_KILLS", "5"))
WRITER = """
import asyncio, random, sys
from dolmen.payload import Bytes
from dolmen.store import Write
from dolmen.stores.volume import commit, open_volume, volume
from dolmen.stores.volume.compaction import Compactor

volume.CHUNK, commit._FLUSH_WRITES = 100_000, 300

async def worker(store, number, seed):
    rng = random.Random(seed)
    for n in range(1, 1_000_000):
        name = f"n{number}-{rng.randrange(20)}"
        if rng.random() < 0.2:
            await store.write(Write.tombstone(name, stamp=(seed << 32) + n))
            print(name, "-", flush=True)
        else:
            size = rng.choice([1, 1_000, 30_000, 150_000])
            data = bytes([n % 251]) * size
            await store.write(Write(name, Bytes(data), stamp=(seed << 32) + n))
            print(name, n % 251, size, flush=True)

async def main(path, seed):
    store = await open_volume(path, segment_size=300_000)
    async def compact():
        while True:
            await Compactor(store).compact()
            await asyncio.sleep(0.01)
    await asyncio.gather(compact(), *(worker(store, n, seed) for n in range(4)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize("reindexed", [False, True])
async def test_what_was_answered_is_there_after_a_kill(
    tmp_path: Path, opened: Opener, reindexed: bool
) -> None:
    path = tmp_path / "v"
    answered: dict[str, list[str]] = {}
    for seed in range(1, KILLS + 1):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(seed)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(60 * seed):
            name, *what = process.stdout.readline().split()
            answered[name] = what
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines():
            name, *what = line.split()
            answered[name] = what
        process.wait()
        process.stdout.close()
        looked = await open_volume(str(path), read_only=True)
        shown = {info.name async for info in looked.list()}
        await looked.aclose()
        if reindexed:
            reindex(str(path))
        store = await opened()
        written = {}
        for name in answered:
            try:
                found = await data_of(store, name)
                written[name] = [str(found[0]), str(len(found))]
                assert found == found[:1] * len(found)
            except NotFound:
                written[name] = ["-"]
        # One write a worker may have been under way, decided and not answered.
        differing = [name for name in answered if written[name] != answered[name]]
        assert len({name.split("-")[0] for name in differing}) == len(differing) <= 4
        answered.update({name: written[name] for name in differing})
        assert shown == {info.name async for info in store.list()}
        async for answer in store.verify_many([info.name async for info in store.list()]):
            assert not isinstance(answer, Failed), answer
        await store.aclose()
