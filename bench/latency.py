"""How long GETs take at half of the top rate: requests come when they come, not when it suits.

An open loop: arrivals are a Poisson process of the rate wanted (seeded), and a
request's time counts from when it was due, so a server that stalls is charged for
everybody who would have waited (Gil Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import gc
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

from bench import wrk
from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.processes import Server, blob_server
from bench.small import beside, store

CONNECTIONS = 64
_PATIENCE = 10
"""Seconds the server may take for what is left at the end."""


@measures(Figure("blob server GET, p99 at half of the top rate", "ms", 3, 1))
def latency(bench: Bench) -> Iterator[Measured]:
    measured, notes = Measured([]), []
    with blob_server(bench.folder / "volume") as server, beside(bench) as (nginx, files):
        paths = store(server, "/blob/{}", bench.folder)
        wrk.get(server.base, paths, seconds=1)
        rate = wrk.get(server.base, paths, seconds=bench.seconds) / 2
        requests = requests_of(server, paths)
        for _ in range(bench.rounds):
            p50, p99 = percentiles(server, requests, rate, bench.seconds)
            measured.samples.append(p99)
            notes.append(f"p50 {p50:.2f} ms")
        measured.note = f"at {rate:,.0f}/s; {', '.join(notes)}"
        if nginx:
            p50, p99 = percentiles(nginx, requests_of(nginx, files), rate, bench.seconds)
            measured.note += f"; nginx at that rate p50 {p50:.2f}, p99 {p99:.2f} ms"
    yield measured


def requests_of(server: Server, paths: Path) -> list[bytes]:
    """A GET for each path in a file."""
    return [
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (line, server.port)
        for line in paths.read_bytes().splitlines()
    ]


def percentiles(
    server: Server, requests: list[bytes], rate: float, seconds: float
) -> tuple[float, float]:
    """The 50th and the 99th percentile, in milliseconds."""
    with _Client(server.port, requests) as client:
        gc.disable()  # a pause of ours would count as the server's
        try:
            times = client.run(rate, seconds)
        finally:
            gc.enable()
    cuts = quantiles(times, n=100)
    return cuts[49] * 1000, cuts[98] * 1000


class _Client:
    """Connections and a loop that never sleeps; it has a processor for itself.

    All answers are of one length, which the first tells.
    """

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self._requests = requests
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(CONNECTIONS):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(sock, select.EPOLLIN)
            self._sockets[sock.fileno()] = sock
        sock.sendall(requests[0])
        answer = sock.recv(65_536)
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(65_536)
        head, _, _ = answer.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        self._length = len(head) + 4 + length
        while len(answer) < self._length:
            answer += sock.recv(65_536)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._poll.close()
        for sock in self._sockets.values():
            sock.close()

    def run(self, rate: float, seconds: float) -> list[float]:
        """Send so many requests a second for so long; seconds from due to answered, of each."""
        source, sockets, clock = random.Random(4), self._sockets, time.perf_counter
        idle, waiting = deque(sockets), deque[float]()
        under_way: dict[int, tuple[float, int]] = {}  # since when it was due, bytes missing
        times: list[float] = []
        at, due = 0, clock()
        end = due + seconds
        while due < end or waiting or under_way:
            now = clock()
            if now > end + _PATIENCE:
                raise NotMeasured(
                    f"{len(waiting)} requests still waited {_PATIENCE} s after the end"
                )
            while due <= now and due < end:
                waiting.append(due)
                due += source.expovariate(rate)
            while waiting and idle:
                fd = idle.popleft()
                sockets[fd].send(self._requests[at % len(self._requests)])
                under_way[fd] = waiting.popleft(), self._length
                at += 1
            for fd, _ in self._poll.poll(0):
                data = sockets[fd].recv(65_536)
                since, missing = under_way[fd]
                if missing == self._length and not data.startswith(b"HTTP/1.1 200 "):
                    raise NotMeasured(f"a GET was answered {data[:80]!r}")
                missing -= len(data)
                if missing:
                    under_way[fd] = since, missing
                else:
                    times.append(clock() - since)
                    del under_way[fd]
                    idle.append(fd)
        return times
