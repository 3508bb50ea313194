"""How long GETs take while a volume is compacted, scrubbed or collected beside them.

GETs at full speed, in turns without and with the work, which goes on within its usual bandwidth
in a process of its own. Compaction is that of the server's companion, which is stopped (SIGSTOP)
in between.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
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
_KEPT = 0.3
_MANY = 200_000
_COMPACTING = b"dolmen.servers.compacting"


@measures(
    Figure("GET p99 beside compaction", "ms", 2, 1, against="without"),
    Figure("GET p99 beside a scrub", "ms", 2, 1, against="without"),
    Figure("GET p99 beside gc", "ms", 2, 1, against="without"),
)
def upkeep(bench: Bench) -> Iterator[Measured]:
    """A volume most of which was removed; then one with many blobs."""
    holes = bench.folder / "holes"
    uvloop.run(_with_holes(holes))
    with blob_server(holes) as server, _stopped(_companion(server)) as companion:
        sealed = _sealed(holes)
        yield _beside(bench, server, lambda: _going_on(companion))
        if not 0 < _sealed(holes) < sealed:
            raise NotMeasured(f"of {sealed} segments {_sealed(holes)} are left: choose other sizes")
    many = bench.folder / "many"
    fill(many, _MANY, size=1024)
    scrub = [DOLMEN, "scrub", "--again", "--bandwidth", "20000000", f"volume:{many}"]
    with blob_server(many) as server:
        yield _beside(bench, server, lambda: _working(scrub))
        yield _beside(bench, server, lambda: _working([DOLMEN, "gc", "--dry-run", server.base]))


async def _with_holes(folder: Path) -> None:
    """Segments of which little stands."""
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


def _beside(
    bench: Bench, server: Server, work: Callable[[], contextlib.AbstractContextManager[None]]
) -> Measured:
    """The 99th percentile without the work, and beside it, in turns."""
    paths = store(server, "/blob/{}", bench.folder)
    wrk.get(server.base, paths, seconds=1)
    measured = Measured([])
    for _ in range(bench.rounds):
        measured.against.append(wrk.p99(server.base, paths, seconds=bench.seconds))
        with work():
            measured.samples.append(wrk.p99(server.base, paths, seconds=bench.seconds))
    return measured


def _companion(server: Server) -> int:
    """The process that compacts beside a server."""
    for pid in server.family():
        with contextlib.suppress(OSError):
            if _COMPACTING in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise NotMeasured("nothing compacts beside the server")


def _sealed(folder: Path) -> int:
    return max(0, sum(1 for _ in folder.rglob("*.seg")) - 1)


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[int]:
    """A process stands still for as long as the block, unless it is `_going_on`."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _going_on(pid: int) -> Iterator[None]:
    """A stopped process goes on for as long as the block."""
    os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGSTOP)


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
