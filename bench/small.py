"""Small objects over HTTP: 1 KiB, one process a server, beside nginx with one worker."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import wrk
from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.processes import Server, api_server, blob_server, nginx

SIZE = 1024
COUNT = 2_000
"""Objects that are read in turn."""


@measures(Figure("blob server GET", "/s", 0.7, 0.9, against="nginx"))
def blob_get(bench: Bench) -> Iterator[Measured]:
    objects = _objects()
    with blob_server(bench.folder / "volume") as server:
        paths = store(server, objects, "/blob/{name}", bench.folder)
        yield _beside_nginx(bench, lambda s: wrk.get(server.base, paths, seconds=s))


@measures(Figure("blob server PUT, 32 connections", "/s", 0.18, 0.25, against="nginx"))
def blob_put(bench: Bench) -> Iterator[Measured]:
    yield _blob_put(bench, 32)


@measures(Figure("blob server PUT, 128 connections", "/s", 0.3, 0.5, against="nginx"))
def blob_put_wide(bench: Bench) -> Iterator[Measured]:
    yield _blob_put(bench, 128)


@measures(Figure("API server GET", "/s", 0.35, 0.5, against="nginx"))
def api_get(bench: Bench) -> Iterator[Measured]:
    objects = _objects()
    with _api(bench, 1) as server:
        paths = store(server, objects, "/upload", bench.folder)
        yield _beside_nginx(bench, lambda s: wrk.get(server.base, paths, seconds=s))


@measures(Figure("API server PUT", "/s", 0.12, 0.18, against="nginx"))
def api_put(bench: Bench) -> Iterator[Measured]:
    with _api(bench, 1) as server:
        yield _beside_nginx(bench, lambda s: wrk.put(server.base, "/upload", seconds=s))


@measures(Figure("API server PUT, two copies", "/s", 0.08, 0.12, against="nginx"))
def api_put_twice(bench: Bench) -> Iterator[Measured]:
    with _api(bench, 2) as server:
        yield _beside_nginx(bench, lambda s: wrk.put(server.base, "/upload", seconds=s))


def _blob_put(bench: Bench, connections: int) -> Measured:
    with blob_server(bench.folder / "volume") as server:
        return put_rate(bench, server, connections)


def put_rate(bench: Bench, server: Server, connections: int) -> Measured:
    """Durable PUTs a second to a blob server."""
    return _beside_nginx(
        bench,
        lambda s: wrk.put(server.base, "/blob/*", connections=connections, seconds=s),
        connections=connections,
        script=True,
    )


@contextlib.contextmanager
def _api(bench: Bench, copies: int) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        blobs = [
            stack.enter_context(blob_server(bench.folder / f"volume-{at}")) for at in range(copies)
        ]
        yield stack.enter_context(api_server(blobs))


def _objects() -> list[bytes]:
    source = random.Random(1)
    return [source.randbytes(SIZE) for _ in range(COUNT)]


def store(server: Server, objects: list[bytes], path: str, folder: Path) -> Path:
    """Put objects there, see that each comes back as it was, return a file with their paths.

    `{name}` in the path stands for the object's SHA-256; without it, it is an API
    server's path, and the object comes back under its id.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    lines = []
    for data in objects:
        name = hashlib.sha256(data).hexdigest()
        connection.request("POST", path.format(name=name), data)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status not in (200, 201) or json.loads(said)["id"] != name:
            raise NotMeasured(f"a PUT was answered {answer.status}: {said.decode()[:200]}")
        lines.append(path.format(name=name) if "{" in path else f"/fetch/{name}")
    for data, line in zip(objects, lines, strict=True):
        connection.request("GET", line)
        if connection.getresponse().read() != data:
            raise NotMeasured(f"{line} came back other than it was stored")
    connection.close()
    paths = folder / "paths"
    paths.write_text("\n".join(lines) + "\n")
    return paths


def _beside_nginx(
    bench: Bench, rate: Callable[[int], float], *, connections: int = 32, script: bool = False
) -> Measured:
    """Rates of a server, each with nginx's GET rate of static files just before it."""
    root = bench.folder / "www"
    root.mkdir()
    names = [f"{at:05d}" for at in range(COUNT)]
    for name, data in zip(names, _objects(), strict=True):
        (root / name).write_bytes(data)
    paths = bench.folder / "www-paths"
    paths.write_text("".join(f"/{name}\n" for name in names))
    measured = Measured([])
    with nginx(root) as beside:
        rate(1)
        if beside:
            wrk.get(beside.base, paths, connections=connections, seconds=2)
        for _ in range(bench.rounds):
            if beside:
                measured.against.append(
                    wrk.get(beside.base, paths, connections=connections, seconds=bench.seconds)
                )
            measured.samples.append(rate(bench.seconds))
        if beside and script:
            most = wrk.put(beside.base, "/discard/*", connections=connections, seconds=2)
            measured.note = f"wrk itself sends up to {most:,.0f} such PUTs/s"
    return measured
