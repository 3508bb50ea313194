"""Small objects over HTTP: 1 KiB, one process a server, beside nginx with one worker."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from bench import wrk
from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.processes import Server, api_server, blob_server, nginx

SIZE = 1024
COUNT = 2_000
"""Objects that are read in turn."""
Rate = Callable[..., float]
"""Requests a second, given `connections` and `seconds`."""


@measures(Figure("blob server GET", "/s", 0.7, 0.9, against="nginx"))
def blob_get(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as server:
        paths = store(server, "/blob/{}", bench.folder)
        yield _beside_nginx(bench, [server], partial(wrk.get, server.base, paths))


@measures(Figure("blob server PUT, 32 connections", "/s", 0.18, 0.25, against="nginx"))
def blob_put(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as server:
        yield put_rate(bench, [server], "/blob/*")


@measures(Figure("blob server PUT, 128 connections", "/s", 0.3, 0.5, against="nginx"))
def blob_put_wide(bench: Bench) -> Iterator[Measured]:
    with blob_server(bench.folder / "volume") as server:
        yield put_rate(bench, [server], "/blob/*", connections=128)


@measures(Figure("API server GET", "/s", 0.35, 0.5, against="nginx"))
def api_get(bench: Bench) -> Iterator[Measured]:
    with _api(bench, copies=1) as servers:
        paths = store(servers[0], "/upload", bench.folder)
        yield _beside_nginx(bench, servers, partial(wrk.get, servers[0].base, paths))


@measures(Figure("API server PUT", "/s", 0.12, 0.18, against="nginx"))
def api_put(bench: Bench) -> Iterator[Measured]:
    with _api(bench, copies=1) as servers:
        yield put_rate(bench, servers, "/upload")


@measures(Figure("API server PUT, two copies", "/s", 0.08, 0.12, against="nginx"))
def api_put_twice(bench: Bench) -> Iterator[Measured]:
    with _api(bench, copies=2) as servers:
        yield put_rate(bench, servers, "/upload")


@contextlib.contextmanager
def _api(bench: Bench, *, copies: int) -> Iterator[list[Server]]:
    """An API server and the blob servers it lies across."""
    with contextlib.ExitStack() as stack:
        blobs = [
            stack.enter_context(blob_server(bench.folder / f"volume-{at}")) for at in range(copies)
        ]
        yield [stack.enter_context(api_server(blobs)), *blobs]


def put_rate(
    bench: Bench, servers: Sequence[Server], path: str, *, connections: int = 32
) -> Measured:
    """PUTs a second to the first of the servers, with what wrk's script itself could send."""
    put = partial(wrk.put, servers[0].base, path)
    measured = _beside_nginx(bench, servers, put, connections=connections)
    with beside(bench) as (other, _):
        if other:
            most = wrk.put(other.base, "/discard/*", connections=connections, seconds=2)
            measured.note += f"; wrk itself sends up to {most:,.0f} such PUTs/s"
    return measured


def some_objects() -> Iterator[bytes]:
    """What is read, the same from every server."""
    source = random.Random(1)
    return (source.randbytes(SIZE) for _ in range(COUNT))


def store(server: Server, path: str, folder: Path) -> Path:
    """Put objects, see that each comes back as it was, return a file with their paths.

    Braces in the path stand for an object's SHA-256; without them it is an API
    server's, and the object comes back under its id.
    """
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:

        def ask(method: str, path: str, body: bytes | None = None) -> bytes:
            connection.request(method, path, body)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status not in (200, 201):
                raise NotMeasured(f"{method} {path} was answered {answer.status}: {said[:300]!r}")
            return said

        lines = []
        for data in some_objects():
            said = json.loads(ask("POST", path.format(hashlib.sha256(data).hexdigest()), data))
            lines.append((path if "{" in path else "/fetch/{}").format(said["id"]))
            if ask("GET", lines[-1]) != data:
                raise NotMeasured(f"{lines[-1]} came back other than it was stored")
    paths = folder / "paths"
    paths.write_text("\n".join(lines) + "\n")
    return paths


@contextlib.contextmanager
def beside(bench: Bench) -> Iterator[tuple[Server | None, Path]]:
    """An nginx, where there is one, with the same objects as files, and a file of their paths."""
    root = bench.folder / "www"
    root.mkdir(exist_ok=True)
    paths = bench.folder / "www-paths"
    with paths.open("w") as lines:
        for at, data in enumerate(some_objects()):
            (root / str(at)).write_bytes(data)
            lines.write(f"/{at}\n")
    with nginx(root) as server:
        if server:
            wrk.get(server.base, paths, seconds=2)  # its first run is half as fast
        yield server, paths


def _beside_nginx(
    bench: Bench, servers: Sequence[Server], rate: Rate, *, connections: int = 32
) -> Measured:
    """Rates of servers, each with nginx's GET rate of static files just before it.

    Notes how much processor time a request takes of either: of all figures the one
    that suffers least when others use the machine as well.
    """
    measured, ours, its = Measured([]), list[float](), list[float]()
    run = partial(_effort, connections=connections, seconds=bench.seconds)
    with beside(bench) as (other, paths):
        rate(connections=connections, seconds=1)
        for _ in range(bench.rounds):
            if other:
                get = partial(wrk.get, other.base, paths)
                run([other], get, measured.against, its)
            run(servers, rate, measured.samples, ours)
    measured.note = f"{median(ours):.1f} µs of processor time a request"
    if its:
        measured.note += f", nginx {median(its):.1f}"
    return measured


def _effort(
    servers: Sequence[Server],
    rate: Rate,
    rates: list[float],
    efforts: list[float],
    *,
    connections: int,
    seconds: int,
) -> None:
    """Append a rate, and the processor time in µs that all the servers took for a request."""
    before = sum(server.busy() for server in servers)
    rates.append(rate(connections=connections, seconds=seconds))
    busy = sum(server.busy() for server in servers) - before
    efforts.append(busy / (rates[-1] * seconds) * 1e6)
