"""Metrics: requests counted on the hot path, shown in the Prometheus text format.

An answer costs one look-up and four additions. Once a second each worker process
writes its sums to its own part of a file that all workers map, and whoever is
asked adds the parts up, so any worker gives the figures of all. A worker that is
started again goes on from the sums its part holds.
"""

from __future__ import annotations

import bisect
import fcntl
import json
import mmap
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dolmen.http.messages import Request

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the histogram of request times, in seconds."""
_HALF = 1 << 18
"""Room for the sums of one worker, twice: every route with every method takes 170 kB."""
_PART = 2 * _HALF + 8
_HEAD = struct.Struct("<II")
_NOTHING = b"[[], []]"
Key = tuple[str, str, int]
"""Route, method, status."""
Row = list[float]
"""Requests, bytes sent, seconds, then a count for each bucket and one for beyond."""


class Figure(NamedTuple):
    """A sample of a metric beyond requests; `label` is empty where it has none.

    Those that the workers keep are added up; a worker that is started again begins its own at 0,
    counters too.
    """

    kind: Literal["counter", "gauge"]
    name: str
    help: str
    label: str
    value_of_label: str
    value: float


class Board:
    """The file the workers share. Made before they are forked.

    Each worker has a part of it, and the companion of the server (`dolmen.companion`) one for
    the last thing it said. A part is a turn and a length, 4 bytes each, and two halves, of which
    that of an even turn is the first: what a reader is looking at is never written to, nor lost
    with a killed worker.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        size = (workers + 1) * _PART
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._mine: int | None = None

    @property
    def first(self) -> bool:
        """Whether this process has the first part: it is the one that has the companion."""
        return self._mine == 0

    def take_part(self) -> dict[Key, Row]:
        """Make a free part this process's; returns the sums it holds."""
        for part in range(self._workers):
            try:  # a lock of the process, which ends with it
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, part)
            except OSError:
                continue
            self._mine = part
            return self._read(part)
        return {}

    def write(self, rows: dict[Key, Row], figures: Iterable[Figure] = ()) -> None:
        """Show this process's sums, and what its application keeps, to the others."""
        if self._mine is not None:
            told = [[*key, *row] for key, row in rows.items()], [*figures]
            self._store(self._mine, json.dumps(told))

    def tell(self, line: str) -> None:
        """Show what the companion said."""
        self._store(self._workers, line)

    def said(self) -> str:
        """The last thing the companion said; empty before it said any."""
        return self._load(self._workers).decode()

    def _store(self, part: int, text: str) -> None:
        data = text.encode()
        if len(data) > _HALF:
            return
        at = part * _PART
        turn = (_HEAD.unpack_from(self._map, at)[0] + 1) % (1 << 32)
        half = at + 8 + turn % 2 * _HALF
        self._map[half : half + len(data)] = data
        self._map[at : at + 8] = _HEAD.pack(turn, len(data))

    def sums(self) -> dict[Key, Row]:
        """The sums of all workers."""
        total: dict[Key, Row] = {}
        for part in range(self._workers):
            for key, row in self._read(part).items():
                known = total.get(key)
                total[key] = (
                    row if known is None else [a + b for a, b in zip(known, row, strict=True)]
                )
        return total

    def figures(self) -> Iterable[Figure]:
        """What the applications of all workers keep, added up."""
        total: dict[tuple[str, str], Figure] = {}
        for part in range(self._workers):
            for figure in map(Figure._make, json.loads(self._load(part) or _NOTHING)[1]):
                known = total.get((figure.name, figure.value_of_label))
                value = figure.value + (known.value if known else 0)
                total[figure.name, figure.value_of_label] = figure._replace(value=value)
        return total.values()

    def _read(self, part: int) -> dict[Key, Row]:
        rows: list[list[Any]] = json.loads(self._load(part) or _NOTHING)[0]
        return {(row[0], row[1], row[2]): row[3:] for row in rows}

    def _load(self, part: int) -> bytes:
        at = part * _PART
        head, data = None, b""
        while head != (head := self._map[at : at + 8]):  # again, if it was written to meanwhile
            turn, length = _HEAD.unpack(head)
            half = at + 8 + turn % 2 * _HALF
            data = self._map[half : half + length]
        return data


class Tally(Collector):
    """What one process counted. Routes leave their names in `request.state`, so labels stay few."""

    def __init__(
        self,
        server: str,
        board: Board,
        figures: Callable[[], Iterable[Figure]] = tuple,
        beside: Callable[[], Iterable[Figure]] = tuple,
    ) -> None:
        """`figures` are this worker's, `beside` those of the companion, the same for all."""
        self._server, self._board = server, board
        self._figures, self._beside = figures, beside
        self._rows = board.take_part()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def observe(self, request: Request | None, status: int, sent: int, seconds: float) -> None:
        """Count one answer."""
        if request is None:
            key = ("malformed", "", status)
        else:
            key = (str(request.state), request.method, status)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = [0.0] * (3 + len(BUCKETS) + 1)
        row[0] += 1
        row[1] += sent
        row[2] += seconds
        row[3 + bisect.bisect_left(BUCKETS, seconds)] += 1

    def share(self) -> None:
        """Show what was counted to the other workers; once a second."""
        self._board.write(self._rows, self._figures())

    def text(self) -> bytes:
        """The figures of all workers in the Prometheus text format."""
        self.share()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The metric families, as prometheus-client asks for them."""
        labels = ("server", "route", "method", "status")
        requests = CounterMetricFamily("dolmen_http_requests", "Requests answered.", labels=labels)
        sent = CounterMetricFamily(
            "dolmen_http_response_bytes", "Bytes of bodies sent.", labels=labels
        )
        seconds = HistogramMetricFamily(
            "dolmen_http_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            labels=("server", "route", "method"),
        )
        times: dict[tuple[str, str], Row] = {}
        for (route, method, status), row in sorted(self._board.sums().items()):
            who = [self._server, route, method, str(status)]
            requests.add_metric(who, row[0])
            sent.add_metric(who, row[1])
            known = times.setdefault((route, method), [0.0] * (len(row) - 2))
            times[route, method] = [a + b for a, b in zip(known, row[2:], strict=True)]
        for (route, method), row in times.items():
            counted, buckets = 0.0, []
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), row[1:], strict=True):
                counted += count
                buckets.append((bound, counted))
            seconds.add_metric([self._server, route, method], buckets, row[0])
        yield from (requests, sent, seconds)
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for kind, name, about, label, which, value in chain(self._board.figures(), self._beside()):
            family = families.get(name)
            if family is None:
                make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                family = make(name, about, labels=("server", label) if label else ("server",))
                families[name] = family
            family.add_metric([self._server, which] if label else [self._server], value)
        yield from families.values()
