"""Memory of a server with 64 transfers of 256 MiB at once, a quarter of them slow."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.processes import Server, api_server, blob_server

SIZE = 256 << 20
TRANSFERS = 64
SLOW_ONE_IN = 4
SHORT = 15
"""Seconds after which the short form gives up what is still under way."""
_PIECE = 1 << 20
"""Bytes; a slow transfer moves so many a second."""
_BLOCK = memoryview(random.Random(3).randbytes(_PIECE))
_PAUSE = 0.1
"""Seconds between two looks at the memory."""


class _Over(Exception):  # noqa: N818 - no error: the transfer is given up on purpose
    pass


@measures(Figure("blob server memory, 64 x 256 MiB", "MB", 400, 250))
def blob_memory(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as server:
        yield _memory(bench, server, "/blob/upload-{}", "/blob/{}")


@measures(Figure("API server memory, 64 x 256 MiB", "MB", 400, 250))
def api_memory(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as blobs, api_server([blobs]) as server:
        yield _memory(bench, server, "/upload", "/fetch/{}")


def _memory(bench: Bench, server: Server, upload: str, download: str) -> Measured:
    """The most anonymous memory while there are uploads, and then downloads."""
    if shutil.disk_usage(bench.folder).free < 2 * TRANSFERS * SIZE:
        raise NotMeasured(f"needs {2 * TRANSFERS * SIZE >> 30} GiB of free space")
    tags = itertools.count()

    def put(slow: bool, stop: threading.Event) -> str:
        path, body = upload.format(next(tags)), _body(tags, slow, stop)
        with server.asked("POST", path, body, SIZE) as response:
            return str(json.load(response)["id"])

    def get(slow: bool, stop: threading.Event) -> str:
        with server.asked("GET", download.format(name)) as response:
            while piece := response.read(_PIECE):
                _pace(slow, stop, len(piece))
        return name

    name = put(False, threading.Event())
    idle = server.anonymous()
    uploads, put_note = _peak(server, put, None if bench.long else SHORT)
    downloads, get_note = _peak(server, get, None if bench.long else SHORT)
    return Measured(
        [max(uploads, downloads) / 1e6],
        note=f"idle {idle / 1e6:.0f} MB, uploads {put_note}, downloads {get_note}",
    )


def _peak(
    server: Server, transfer: Callable[[bool, threading.Event], str], seconds: float | None
) -> tuple[int, str]:
    """The most memory while the transfers go on, in bytes, and a word on how far they came."""
    stop, most, ended = threading.Event(), 0, 0
    start = time.monotonic()
    with ThreadPoolExecutor(TRANSFERS) as pool:
        futures = [pool.submit(transfer, at % SLOW_ONE_IN == 0, stop) for at in range(TRANSFERS)]
        try:
            while not all(future.done() for future in futures):
                most = max(most, server.anonymous())
                time.sleep(_PAUSE)
                if seconds is not None and time.monotonic() - start > seconds:
                    break
        finally:
            stop.set()
    for future in futures:
        error = future.exception()
        if error is None:
            ended += 1
        elif not isinstance(error, _Over):
            raise error
    took = time.monotonic() - start
    return most, f"{most / 1e6:.0f} MB ({ended} of {TRANSFERS} whole after {took:.0f} s)"


def _body(tags: Iterator[int], slow: bool, stop: threading.Event) -> Iterator[memoryview]:
    """256 MiB in which no two MiB are alike, in this body or any other."""
    for _ in range(SIZE // _PIECE):
        tag = memoryview(next(tags).to_bytes(8, "big"))
        yield tag
        yield _BLOCK[len(tag) :]
        _pace(slow, stop, _PIECE)


def _pace(slow: bool, stop: threading.Event, moved: int) -> None:
    if stop.wait(moved / _PIECE if slow else 0):
        raise _Over
