"""How long GETs take while a volume is compacted, scrubbed or collected beside them.

The same open loop as in `bench.latency`, at half of the top rate, in turns without and with
the work, which goes on within its usual bandwidth in a process of its own.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench import wrk
from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.filling import fill, name_of, put
from bench.latency import percentiles, requests_of
from bench.processes import DOLMEN, blob_server
from bench.small import store
from dolmen.stores.volume import open_volume

_SEGMENT = 64 << 20
_COUNT, _SIZE = 12_000, 65_536
_KEPT = 0.3
_MANY = 200_000
_COMPACT = """
import sys, time
from dolmen.pace import Pace
from dolmen.stores.volume.background import BANDWIDTH
from dolmen.stores.volume.by_hand import compact_by_hand

pace, before = Pace(BANDWIDTH), 0
def go_on(done):
    global before
    moved, before = done.moved - before, done.moved
    time.sleep(pace.delay(moved))
    return True
print("begun", flush=True)
compact_by_hand(sys.argv[1], go_on)
"""


@measures(
    Figure("GET p99 beside compaction", "ms", 2, 1, against="without"),
    Figure("GET p99 beside a scrub", "ms", 2, 1, against="without"),
    Figure("GET p99 beside gc", "ms", 2, 1, against="without"),
)
def upkeep(bench: Bench) -> Iterator[Measured]:
    """A volume most of which was removed; then one with many blobs."""
    holes = bench.folder / "holes"
    uvloop.run(_with_holes(holes))
    compact = [sys.executable, "-c", _COMPACT, str(holes)]
    yield from _beside(bench, holes, compact)
    many = bench.folder / "many"
    fill(many, _MANY, size=1024)
    scrub = [DOLMEN, "scrub", "--again", "--bandwidth", "20000000", f"volume:{many}"]
    gc = [DOLMEN, "gc", "--dry-run", "http://127.0.0.1:{port}"]
    yield from _beside(bench, many, scrub, gc)


async def _with_holes(folder: Path) -> None:
    """Segments of which little stands."""
    rng = random.Random(3)
    opened = await open_volume(str(folder), segment_size=_SEGMENT)
    try:
        await put(opened, range(_COUNT), size=_SIZE)
        for number in range(_COUNT):
            if rng.random() > _KEPT:
                info = await opened.stat(name_of(number))
                await opened.remove(info.name, if_stamp=info.stamp)
    finally:
        await opened.aclose()


def _beside(bench: Bench, folder: Path, *commands: list[str]) -> Iterator[Measured]:
    with blob_server(folder) as server:
        paths = store(server, "/blob/{}", bench.folder)
        wrk.get(server.base, paths, seconds=1)
        rate = wrk.get(server.base, paths, seconds=bench.seconds) / 2
        requests = requests_of(server, paths)
        for command in commands:
            words = [
                word.format(port=server.port) if "{port}" in word else word for word in command
            ]
            measured = Measured([])
            for _ in range(bench.rounds):
                _, without = percentiles(server, requests, rate, bench.seconds)
                with _working(words):
                    _, beside = percentiles(server, requests, rate, bench.seconds)
                measured.against.append(without)
                measured.samples.append(beside)
            measured.note = f"at {rate:,.0f}/s"
            yield measured


@contextlib.contextmanager
def _working(command: list[str]) -> Iterator[None]:
    """Work that goes on for all of the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield
        if process.poll() is not None and process.returncode:
            raise NotMeasured(f"{command[1]} failed: {process.communicate()[1][-300:]}")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
