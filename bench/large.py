"""Large objects: 64 MiB on one connection, beside the speed of SHA-256 on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.processes import Server, api_server, blob_server

T = TypeVar("T")
SIZE = 64 << 20
ROUNDS = 7


@measures(
    Figure("blob server PUT 64 MiB", "MB/s", 0.6, 1.0, against="SHA-256"),
    Figure("blob server GET 64 MiB", "MB/s", 1.3, 2, against="SHA-256"),
)
def blob_large(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as server:
        yield from _transfers(bench, server, "/blob/{}", "/blob/{}")


@measures(
    Figure("API server PUT 64 MiB", "MB/s", 0.35, 0.5, against="SHA-256"),
    Figure("API server GET 64 MiB", "MB/s", 0.75, 1.0, against="SHA-256"),
)
def api_large(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as blobs, api_server([blobs]) as server:
        yield from _transfers(bench, server, "/upload", "/fetch/{}")


def _transfers(bench: Bench, server: Server, upload: str, download: str) -> Iterator[Measured]:
    """Every round puts other bytes and gets them again; the first is to warm up.

    The client compares and hashes outside the time measured.
    """
    put, get, disk = Measured([]), Measured([]), list[float]()
    source = random.Random(2)
    buffer = memoryview(bytearray(SIZE))
    for counts in (False, *[True] * ROUNDS):
        data = source.randbytes(SIZE)
        hashing, digest = _timed(hashlib.sha256, data)
        name = digest.hexdigest()
        flushing, _ = _timed(_write, bench.folder / "file", data)
        putting, said = _timed(_put, server, upload.format(name), data)
        getting, got = _timed(_get, server, download.format(name), buffer)
        if said["id"] != name or got != SIZE or buffer != data:
            raise NotMeasured(f"{name} came back other than it was stored")
        buffer[:] = bytes(SIZE)  # so that the next comparison can't see these bytes
        if counts:
            disk.append(SIZE / flushing / 1e6)
            for measured, seconds in ((put, putting), (get, getting)):
                measured.samples.append(SIZE / seconds / 1e6)
                measured.against.append(SIZE / hashing / 1e6)
    put.note = f"the disk itself takes and flushes a file of 64 MiB at {median(disk):.0f} MB/s"
    yield put
    yield get


def _put(server: Server, path: str, data: bytes) -> Any:
    with server.asked("POST", path, data) as response:
        return json.load(response)


def _get(server: Server, path: str, buffer: memoryview) -> int:
    with server.asked("GET", path) as response:
        return response.readinto(buffer)


def _write(path: Path, data: bytes) -> None:
    """Write a file and flush it."""
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fdatasync(file.fileno())


def _timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result
