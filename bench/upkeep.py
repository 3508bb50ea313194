"""How long GETs take while a volume is compacted, scrubbed or collected beside them.

GETs at full speed, with and without the work, which goes on within its usual bandwidth:
compaction in the server, scrub and gc by commands that ask it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench import wrk
from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.filling import fill, name_of, put
from bench.processes import DOLMEN, Server, blob_server
from bench.small import store
from dolmen.stores.volume import open_volume
from dolmen.testing import calls

_SEGMENT = 64 << 20
_COUNT, _SIZE = 12_000, 65_536
_KEPT = 0.4
_MANY = 200_000
_SETTINGS = {"DOLMEN_SCRUB_EVERY_DAYS": "0"}  # no other work than the one that is measured


@measures(
    Figure("GET p99 beside compaction", "ms", 2, 1, against="without"),
    Figure("GET p99 beside a scrub", "ms", 2, 1, against="without"),
    Figure("GET p99 beside gc", "ms", 2, 1, against="without"),
)
def upkeep(bench: Bench) -> Iterator[Measured]:
    """A volume most of which was removed, without and with compaction; then one with many blobs."""
    holes, many = bench.folder / "holes", bench.folder / "many"
    uvloop.run(_with_holes(holes))
    fill(many, _MANY, size=1024)
    with blob_server(many, **_SETTINGS) as server:
        paths = _warmed_up(bench, server)
        quiet = [_p99(bench, server, paths) for _ in range(bench.rounds)]
        by_commands = []
        for work in (["scrub", "--again", "--bandwidth", "20000000"], ["gc", "--dry-run"]):
            by_commands.append(measured := Measured([]))
            for _ in range(bench.rounds):
                measured.against.append(_p99(bench, server, paths))
                with _working([DOLMEN, *work, server.base]):
                    measured.samples.append(_p99(bench, server, paths))
    with blob_server(holes, **_SETTINGS) as server:
        before, paths = _segments(holes), _warmed_up(bench, server)
        compacting = Measured([_p99(bench, server, paths) for _ in range(bench.rounds)], quiet)
        if not 1 < _segments(holes) < before:
            compacting = Measured([], note=f"{before} segments became {_segments(holes)} too fast")
    yield compacting
    yield from by_commands


async def _with_holes(folder: Path) -> None:
    """Segments of which little is live."""
    rng = random.Random(3)
    opened = await open_volume(str(folder), segment_size=_SEGMENT)
    try:
        await put(opened, range(_COUNT), size=_SIZE)
        for number in range(_COUNT):
            if rng.random() > _KEPT:
                info = await opened.stat(name_of(number))
                await calls.remove(opened, info.name, if_stamp=info.stamp)
    finally:
        await opened.aclose()


def _warmed_up(bench: Bench, server: Server) -> Path:
    """Objects to get, which were got for a second."""
    paths = store(server, "/blob/{}", bench.folder)
    wrk.get(server.base, paths, seconds=1)
    return paths


def _p99(bench: Bench, server: Server, paths: Path) -> float:
    return wrk.p99(server.base, paths, seconds=bench.seconds)


def _segments(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.seg"))


@contextlib.contextmanager
def _working(command: list[str]) -> Iterator[None]:
    """Work that has begun, which is when it gives way, and goes on for all of the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        while process.poll() is None and os.getpriority(os.PRIO_PROCESS, process.pid) <= before:
            time.sleep(0.01)
        yield
        if process.poll() is not None:
            raise NotMeasured(f"{command[1]} ended too early: {process.communicate()[1][-300:]}")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
