"""How long GETs take at half of the top rate: requests come when they come, not when it suits.

An open loop: arrivals are a Poisson process of the rate wanted (seeded), and a
request's time counts from when it was due, so a server that stalls is charged for
everybody who would have waited (Gil Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import contextlib
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
from bench.small import SIZE, beside, store

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
        for _ in range(bench.rounds):
            p50, p99 = _percentiles(server, paths, rate, bench.seconds)
            measured.samples.append(p99)
            notes.append(f"p50 {p50:.2f} ms")
        measured.note = f"at {rate:,.0f}/s; {', '.join(notes)}"
        if nginx:
            p50, p99 = _percentiles(nginx, files, rate, bench.seconds)
            measured.note += f"; nginx at that rate p50 {p50:.2f}, p99 {p99:.2f} ms"
    yield measured


def _percentiles(server: Server, paths: Path, rate: float, seconds: float) -> tuple[float, float]:
    """The 50th and the 99th percentile of GETs of the paths in a file, in milliseconds."""
    requests = [
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (line, server.port)
        for line in paths.read_bytes().splitlines()
    ]
    gc.disable()  # a pause of ours would count as the server's
    try:
        times = _times(server.port, requests, rate, seconds)
    finally:
        gc.enable()
    cuts = quantiles(times, n=100)
    return cuts[49] * 1000, cuts[98] * 1000


def _times(port: int, requests: list[bytes], rate: float, seconds: float) -> list[float]:
    """Send so many requests a second for so long; seconds from due to answered, of each.

    The loop never sleeps: it has a processor for itself. All answers are of one length.
    """
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        sockets: dict[int, socket.socket] = {}
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poll.register(sock, select.EPOLLIN)
            sockets[sock.fileno()] = sock
        length = _length(sock, requests[0])
        source, clock = random.Random(4), time.perf_counter
        idle, waiting = deque(sockets), deque[float]()
        under_way: dict[int, tuple[float, int]] = {}  # since when it was due, bytes missing
        times: list[float] = []
        at, due = 0, clock()
        end = due + seconds
        while due < end or waiting or under_way:
            now = clock()
            if now > end + _PATIENCE:
                raise NotMeasured(f"{len(waiting)} requests waited {_PATIENCE} s after the end")
            while due <= now and due < end:
                waiting.append(due)
                due += source.expovariate(rate)
            while waiting and idle:
                fd = idle.popleft()
                sockets[fd].send(requests[at % len(requests)])
                under_way[fd] = waiting.popleft(), length
                at += 1
            for fd, _ in poll.poll(0):
                data = sockets[fd].recv(65_536)
                since, missing = under_way[fd]
                if missing == length and not data.startswith(b"HTTP/1.1 200 "):
                    raise NotMeasured(f"a GET was answered {data[:80]!r}")
                missing -= len(data)
                if missing:
                    under_way[fd] = since, missing
                else:
                    times.append(clock() - since)
                    del under_way[fd]
                    idle.append(fd)
        return times


def _length(sock: socket.socket, request: bytes) -> int:
    """Bytes of an answer: its head, and an object."""
    sock.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(65_536)
    length = answer.index(b"\r\n\r\n") + 4 + SIZE
    while len(answer) < length:
        answer += sock.recv(65_536)
    return length
