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


def _get(name: str, at_least: float, aim: float, copies: int) -> None:
    """The rate of GETs of objects in so many blob servers, under an API server; 0: in one alone."""

    @measures(Figure(name, "/s", at_least, aim, against="nginx"))
    def run(bench: Bench) -> Iterator[Measured]:
        with _servers(bench, copies) as servers:
            paths = store(servers[0], "/upload" if copies else "/blob/{}", bench.folder)
            yield _beside_nginx(bench, servers, partial(wrk.get, servers[0].base, paths))


def _put(name: str, at_least: float, aim: float, copies: int, connections: int = 32) -> None:
    """The same for PUTs."""

    @measures(Figure(name, "/s", at_least, aim, against="nginx"))
    def run(bench: Bench) -> Iterator[Measured]:
        with _servers(bench, copies) as servers:
            path = "/upload" if copies else "/blob/*"
            yield put_rate(bench, servers, path, connections=connections)


_get("blob server GET", 0.7, 0.9, copies=0)
_put("blob server PUT, 32 connections", 0.18, 0.25, copies=0)
_put("blob server PUT, 128 connections", 0.3, 0.5, copies=0, connections=128)
_get("API server GET", 0.35, 0.5, copies=1)
_put("API server PUT", 0.12, 0.18, copies=1)
_put("API server PUT, two copies", 0.08, 0.12, copies=2)


@contextlib.contextmanager
def _servers(bench: Bench, copies: int) -> Iterator[list[Server]]:
    """A blob server, or an API server and the blob servers it lies across."""
    with contextlib.ExitStack() as stack:
        blobs = [
            stack.enter_context(blob_server(bench.folder / f"volume-{at}"))
            for at in range(copies or 1)
        ]
        yield [stack.enter_context(api_server(blobs)), *blobs] if copies else blobs


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
    bench: Bench, servers: Sequence[Server], rate: Callable[..., float], *, connections: int = 32
) -> Measured:
    """Rates of servers, each with nginx's GET rate of static files just before it.

    Notes how much processor time a request takes of either: of all figures the one
    that suffers least when others use the machine as well.
    """

    def effort(servers: Sequence[Server], rate: Callable[..., float]) -> tuple[float, float]:
        """A rate, and the processor time in µs that all the servers took for a request."""
        before = sum(server.busy() for server in servers)
        found = rate(connections=connections, seconds=bench.seconds)
        busy = sum(server.busy() for server in servers) - before
        return found, busy / (found * bench.seconds) * 1e6

    ours, its = [], []
    with beside(bench) as (other, paths):
        rate(connections=connections, seconds=1)
        for _ in range(bench.rounds):
            if other:
                its.append(effort([other], partial(wrk.get, other.base, paths)))
            ours.append(effort(servers, rate))
    note = f"{median(time for _, time in ours):.1f} µs of processor time a request"
    if its:
        note += f", nginx {median(time for _, time in its):.1f}"
    return Measured([found for found, _ in ours], [found for found, _ in its], note)
