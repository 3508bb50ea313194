"""A server with a volume gives back what was deleted by itself, and says so."""

from __future__ import annotations

import asyncio
import json
import random
import time

from acceptance.processes import Process, ask, free_ports, until_alive
from dolmen.config import Settings
from dolmen.payload import Bytes
from dolmen.servers.compacting import CompactingBeside
from dolmen.stores.volume import open_volume
from dolmen.testing import calls


def test_before_it_said_anything_there_are_figures_all_the_same():
    work = CompactingBeside("/srv/data", Settings().compaction)
    figures = {each.name: each for each in work.figures("")}
    assert figures["dolmen_volume_reclaimable_bytes"].value == 0
    assert figures["dolmen_compaction_failing"].value == 0
    assert figures["dolmen_compaction_failing"].value_of_label == "/srv/data"
    said = json.dumps({"won": 5, "reclaimable": 7, "failing": "no room", "looked": None})
    figures = {each.name: each.value for each in work.figures(said)}
    assert figures["dolmen_compaction_failing"] == 1
    assert figures["dolmen_volume_reclaimable_bytes"] == 7
    assert figures["dolmen_compaction_last_complete_seconds"] == 0


async def mostly_deleted(folder):
    """A volume of several small segments, in which little stands; what does."""
    rng = random.Random(1)
    store = await open_volume(str(folder), segment_size=1 << 20)
    held = {f"n{number}": rng.randbytes(100_000) for number in range(60)}
    for name, data in held.items():
        await calls.put(store, name, Bytes(data))
    for number in range(60):
        if number % 5:
            await calls.delete(store, f"n{number}")
            del held[f"n{number}"]
    await store.aclose()
    return held


def figure(port, name):
    lines = ask(port, "GET", "/metrics")[2].decode().splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return float(line.split()[-1])


def test_a_blob_server_gives_room_back_by_itself(tmp_path):
    folder = tmp_path / "v"
    held = asyncio.run(mostly_deleted(folder))
    (port,) = free_ports(1)
    listen = f"127.0.0.1:{port}"
    server = Process("blob-server", "--store", f"volume:{folder}", "--listen", listen)
    try:
        until_alive(port)
        deadline = time.monotonic() + 60
        while figure(port, "dolmen_compaction_won_bytes_total") < 3_500_000:
            assert time.monotonic() < deadline, ask(port, "GET", "/status")[2]
            time.sleep(0.1)  # another process's work has nothing to wait on
        assert figure(port, "dolmen_compaction_failing") == 0
        assert figure(port, "dolmen_volume_reclaimable_bytes") < 1_000_000
        for name, data in held.items():
            assert ask(port, "GET", f"/blob/{name}")[2] == data
        told = json.loads(ask(port, "GET", "/status")[2])["compaction"]
        assert told["won"] > 3_500_000
        assert told["failing"] is None
    finally:
        server.end()
    assert sum(file.stat().st_size for file in folder.rglob("*.seg")) < 2_500_000
