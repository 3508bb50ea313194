"""Large objects: 64 MiB on one connection, beside the speed of SHA-256 on this machine."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.processes import Server, api_server, blob_server
from bench.transfer import receive, send

T = TypeVar("T")
SIZE = 64 << 20
ROUNDS = 7


@measures(
    Figure("blob server PUT 64 MiB", "MB/s", 0.6, 1.0, against="SHA-256"),
    Figure("blob server GET 64 MiB", "MB/s", 1.3, 2, against="SHA-256"),
)
def blob_large(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as server:
        yield from _transfers(server, lambda name: (f"/blob/{name}", f"/blob/{name}"))


@measures(
    Figure("API server PUT 64 MiB", "MB/s", 0.35, 0.5, against="SHA-256"),
    Figure("API server GET 64 MiB", "MB/s", 0.75, 1.0, against="SHA-256"),
)
def api_large(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as blobs, api_server([blobs]) as server:
        yield from _transfers(server, lambda name: ("/upload", f"/fetch/{name}"))


def _transfers(server: Server, paths: Callable[[str], tuple[str, str]]) -> Iterator[Measured]:
    """Every round puts other bytes and gets them again; the first is to warm up.

    The client compares and hashes outside the time measured.
    """
    put, get = Measured([]), Measured([])
    source = random.Random(2)
    buffer = memoryview(bytearray(SIZE))
    for warm in (False, *[True] * ROUNDS):
        data = source.randbytes(SIZE)
        hashing, digest = _timed(hashlib.sha256, data)
        name = digest.hexdigest()
        upload, download = paths(name)
        putting, said = _timed(send, server.port, upload, [data], SIZE)
        getting, _ = _timed(receive, server.port, download, buffer)
        if said["id"] != name or buffer != data:
            raise NotMeasured(f"{download} came back other than it was stored")
        buffer[:] = bytes(SIZE)  # so that the next comparison can't see these bytes
        if warm:
            for measured, seconds in ((put, putting), (get, getting)):
                measured.samples.append(SIZE / seconds / 1e6)
                measured.against.append(SIZE / hashing / 1e6)
    yield put
    yield get


def _timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result
