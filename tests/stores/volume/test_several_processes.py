"""Several processes on one volume, some of which are killed: what they were told stands."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dolmen.errors import Unavailable
from dolmen.payload import Bytes
from dolmen.stores.volume import commit, open_volume
from dolmen.stores.volume.key import key_of
from dolmen.stores.volume.reindex import reindex
from dolmen.testing.conformance.material import recomputed

WORKER = """
import asyncio, json, random, sys
from dolmen.errors import Conflict, NotFound
from dolmen.payload import Bytes, Stream
from dolmen.stores.volume import open_volume

path, number, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)

def told(**what):
    print(json.dumps(what), flush=True)

def streamed(data):
    async def pieces():
        for at in range(0, len(data), 30_000):
            yield data[at : at + 30_000]
    return Stream(len(data), pieces)

async def work(store, lane):
    for turn in range(10_000):
        own = f"own-{number}-{lane}-{turn}"
        size = rng.choice((0, 10, 1000, 70_000, 200_000))
        data = rng.randbytes(size)
        put = await store.put(own, streamed(data) if size > 65_536 else Bytes(data))
        told(own=own, data=[data[:8].hex(), size], stamp=put.stamp)
        if rng.random() < 0.3:
            put = await store.delete(own)
            told(own=own, data=None, stamp=put.stamp)
        elif rng.random() < 0.3:
            told(removing=own)
            assert await store.remove(own, if_stamp=put.stamp)
            told(own=own, data=None, stamp=put.stamp)
        shared = f"shared-{rng.randrange(5)}"
        try:
            put = await store.put(shared, Bytes(b"%d %d %d" % (number, lane, turn)))
            told(shared=shared, writer=[number, lane, turn], stamp=put.stamp)
        except Conflict:
            try:
                put = await store.delete(shared)
                told(shared=shared, writer=None, stamp=put.stamp)
            except NotFound:
                pass

async def main():
    store = await open_volume(path, segment_size=1 << 20)
    print("ready", flush=True)
    await asyncio.gather(*(work(store, lane) for lane in range(4)))

asyncio.run(main())
"""


class Workers:
    """Processes that write, and all they were told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.running: dict[int, subprocess.Popen] = {}
        self.started = 0

    def start(self) -> None:
        self.started += 1
        self.running[self.started] = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self.path), str(self.started), str(self.started)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, number: int, lines: int) -> None:
        """Read until the process was told so many things more."""
        for _ in range(lines):
            self._take(self.running[number].stdout.readline())

    def kill(self, number: int) -> None:
        process = self.running.pop(number)
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            self._take(line)
        process.wait()
        process.stdout.close()

    def _take(self, line: str) -> None:
        assert line, "a worker ended by itself"
        if line.startswith("{") and line.endswith("\n"):
            self.lines.append(json.loads(line))

    def expected(self) -> tuple[dict, dict]:
        """Of own names the last that was told; of shared ones the highest stamp's."""
        own: dict[str, dict] = {}
        shared: dict[str, dict] = {}
        for line in self.lines:
            if "removing" in line:
                own[line["removing"]]["may_go"] = True
            elif "own" in line:
                own[line["own"]] = line
            elif line["stamp"] > shared.get(line["shared"], {"stamp": 0})["stamp"]:
                shared[line["shared"]] = line
        return own, shared


async def check(path: Path, workers: Workers) -> None:
    own, shared = workers.expected()
    assert own
    store = await open_volume(str(path), segment_size=1 << 20)
    there = {info.name: info async for info in store.list(tombstones=True)}
    for name, line in own.items():
        info = there.get(name)
        live = info is not None and info.kind == 1
        if line["data"] is None:
            assert not live, f"{name} is back"
            continue
        if not live:
            # A delete or removal that was under way when the process was killed.
            assert line.get("may_go") or (info is not None and info.kind == 3), f"{name} is lost"
            continue
        payload = (await store.get(name)).payload
        data = b"".join([bytes(piece) async for piece in payload])
        assert [data[:8].hex(), len(data)] == line["data"]
    for name, line in shared.items():
        assert there[name].stamp >= line["stamp"], f"the last write of {name} is lost"
        if there[name].stamp == line["stamp"] and line["writer"] is not None:
            data = (await store.get(name)).payload.whole
            assert bytes(data) == b"%d %d %d" % tuple(line["writer"])
    digests = await store.digests()
    assert digests == await recomputed(store)
    await store.aclose()
    assert reindex(str(path)).damaged == []
    store = await open_volume(str(path))
    assert await store.digests() == digests
    await store.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_processes_killed_while_others_go_on_lose_nothing(tmp_path, seed):
    path = tmp_path / "v"
    rng = random.Random(seed)
    workers = Workers(path)
    for _ in range(3):
        workers.start()
    for _ in range(5):
        for number in list(workers.running):
            workers.wait_for(number, rng.randrange(20, 120))
        workers.kill(rng.choice(list(workers.running)))
        workers.start()
    # With one left the others' claims, segments and uploads are no one's.
    while len(workers.running) > 1:
        workers.kill(next(iter(workers.running)))
    (last,) = workers.running
    workers.wait_for(last, 100)
    workers.kill(last)
    await check(path, workers)


CLAIMANT = """
import asyncio, os, sys
from dolmen.payload import Bytes
from dolmen.stores.volume import commit, open_volume
from dolmen.stores.volume.write import Op, Write

async def main():
    store = await open_volume(sys.argv[1])
    await store.put("before", Bytes(b"data"))
    batch, _ = store._log.claim([Write(Op.DELETE, "name", stamp=None)])
    assert batch.writes
    print("claimed", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def claimant(path: Path) -> subprocess.Popen:
    """A process that has decided about `name` and does not come to an end."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIMANT, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "claimed\n"
    return process


async def test_a_name_claimed_by_a_killed_process_is_free_again_though_others_are_written(
    tmp_path,
):
    store = await open_volume(str(tmp_path / "v"))
    process = claimant(tmp_path / "v")
    waiting = asyncio.ensure_future(store.put("name", Bytes(b"mine")))
    await store.put("other", Bytes(b"data"))
    assert not waiting.done()
    process.kill()
    process.communicate()
    turn = 0
    async with asyncio.timeout(20):
        while not waiting.done():
            turn += 1
            await store.put(f"other{turn}", Bytes(b"data"))
    assert (await waiting).outcome == "created"
    assert (await store.get("before")).payload.whole == b"data"
    await store.aclose()


async def test_a_name_claimed_by_a_process_that_hangs_is_answered_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "LOOKS", 300)
    store = await open_volume(str(tmp_path / "v"))
    process = claimant(tmp_path / "v")
    with pytest.raises(Unavailable, match="does not come to an end"):
        await asyncio.wait_for(store.put("name", Bytes(b"mine")), 20)
    await store.put("other", Bytes(b"data"))
    assert store._log._recent.get(key_of("name")) is None
    process.communicate("")
    await store.aclose()


KEEPER = """
import asyncio, sys
from dolmen.payload import Bytes
from dolmen.stores.volume import open_url

async def main():
    store = await open_url("volume:" + sys.argv[1])
    print("keeper", store._keeper.process.pid, flush=True)
    turn = 0
    while True:
        turn += 1
        await store.put(f"n{turn}", Bytes(b"data" * 1000))
        print("told", turn, flush=True)

asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_killed_server_takes_its_keeper_along_and_loses_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(tmp_path / "v")], stdout=subprocess.PIPE, text=True
    )
    keeper = int(process.stdout.readline().split()[1])
    told = 0
    for line in process.stdout:
        told = int(line.split()[1])
        if told == 300:
            process.kill()
        if not line.endswith("\n"):
            break
    process.wait()
    process.stdout.close()
    async with asyncio.timeout(20):
        while alive(keeper):
            await asyncio.sleep(0.05)
    store = await open_volume(str(tmp_path / "v"))
    assert (await store.digests()).count >= told
    await store.aclose()
    assert not (tmp_path / "v/holder").exists()


async def test_a_killed_keeper_is_started_again_and_merges(tmp_path):
    store = await open_volume(str(tmp_path / "v"), apart=True)
    first = store._keeper.process.pid
    os.kill(first, signal.SIGKILL)
    await store.put("name", Bytes(b"data"))
    async with asyncio.timeout(20):
        while store._recent.count():
            await asyncio.sleep(0.05)
    second = store._keeper.process.pid
    assert second != first
    await store.aclose()
    assert not alive(second)


FIRST_OF_ITS_KIND = """
import asyncio, os, sys
from dolmen.payload import Bytes
from dolmen.stores.volume import open_volume

async def main():
    assert os.getpid() == 1
    store = await open_volume(sys.argv[1])
    await store.put(sys.argv[2], Bytes(b"data"))
    print(*[info.name async for info in store.list()], flush=True)
    for line in sys.stdin:
        await store.put(line.strip(), Bytes(b"data"))
        print(*[info.name async for info in store.list()], flush=True)
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rpf", "true"], check=False).returncode != 0,
    reason="no PID namespaces can be made here",
)
async def test_processes_with_the_same_id_as_in_containers_are_not_taken_for_each_other(tmp_path):
    def contained(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [
                "unshare",
                "-rpf",
                "--kill-child",
                sys.executable,
                "-c",
                FIRST_OF_ITS_KIND,
                str(tmp_path / "v"),
                name,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = contained("a")
    assert first.stdout.readline().split() == ["a"]
    assert "BadVolume" in contained("b").communicate()[1]
    assert "BadVolume" in contained("b").communicate()[1], "by then it is taken for a leftover"
    first.stdin.write("c\n")
    first.stdin.flush()
    assert sorted(first.stdout.readline().split()) == ["a", "c"]
    first.kill()
    first.communicate()
    assert sorted(contained("d").communicate()[0].split()) == ["a", "c", "d"]


COMPACTOR = """
import sys
from dolmen.stores.volume import compact
from dolmen.stores.volume.compaction import Compacting

compact.THRESHOLD = 0.95
compact._LOOK_AGAIN = 0.0
while True:
    with Compacting(sys.argv[1]) as volume:
        print(volume.compact(lambda _: True).segments, flush=True)
"""


def compactor(path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMPACTOR, str(path)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("seed", range(2))
async def test_compaction_beside_processes_that_write_loses_nothing(tmp_path, seed):
    path = tmp_path / "v"
    rng = random.Random(seed)
    workers = Workers(path)
    for _ in range(2):
        workers.start()
    for number in list(workers.running):
        workers.wait_for(number, 20)
    gone = 0
    for _ in range(4):
        compacting = compactor(path)
        for number in list(workers.running):
            workers.wait_for(number, rng.randrange(100, 300))
        gone += int(compacting.stdout.readline())
        compacting.kill()  # in the midst of the next pass
        gone += sum(int(line) for line in compacting.stdout if line.endswith("\n"))
        compacting.wait()
        compacting.stdout.close()
        workers.kill(rng.choice(list(workers.running)))
        workers.start()
    while workers.running:
        workers.kill(next(iter(workers.running)))
    assert gone
    await check(path, workers)
