"""A volume with many blobs: opening it after kill -9, its index on disk, PUTs into it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import uvloop

from bench import wrk
from bench.figures import Bench, Figure, Measured, measures
from bench.filling import fill, name_of
from bench.processes import blob_server
from bench.small import put_rate
from dolmen.stores import open_store

SIZE = 100
COUNT, LONG = 1_000_000, 10_000_000
CROWD = 5_000_000
LOAD = 2
"""Seconds a server takes PUTs before it is killed amid them."""


@measures(
    Figure("index on disk per blob", "B", 190, 130),
    Figure("opening a volume after kill -9", "s", 1, 0.2),
)
def opening(bench: Bench) -> Iterator[Measured]:
    """Each time the volume was being written to by a server when that was killed."""
    volume, count = bench.folder / "volume", LONG if bench.long else COUNT
    fill(volume, count, size=SIZE)
    yield Measured([_allocated(volume / "index") / count], note=f"of {count:,}, put in no order")
    measured = Measured([], note=f"of {count:,}")
    for _ in range(bench.rounds):
        with blob_server(volume) as server, ThreadPoolExecutor(1) as pool:
            load = pool.submit(wrk.put, server.base, "/blob/*", seconds=2 * LOAD)
            time.sleep(LOAD)
            server.process.kill()
            load.exception()  # it finds the server gone, as it should
        measured.samples.append(uvloop.run(_open(volume, count)))
    yield measured


@measures(
    Figure(
        "blob server PUT, 32 connections, 5 M blobs", "/s", 0.15, 0.2, against="nginx", long=True
    )
)
def crowded(bench: Bench) -> Iterator[Measured]:
    fill(bench.folder / "volume", CROWD, size=SIZE)
    with blob_server(bench.folder / "volume") as server:
        yield put_rate(bench, [server], "/blob/*")


async def _open(volume: Path, count: int) -> float:
    """Seconds until the first and the last blob of a volume are found."""
    start = time.perf_counter()
    async with aclosing(await open_store(f"volume:{volume}")) as store:
        await store.stat(name_of(0))
        await store.stat(name_of(count - 1))
        return time.perf_counter() - start


def _allocated(folder: Path) -> int:
    """Bytes that the files of a folder take on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
