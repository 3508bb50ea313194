"""Replication between two blob servers over HTTP, beside them on the same machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import aclosing

import uvloop

from bench.figures import Bench, Figure, Measured, measures
from bench.filling import add, copied, fill
from bench.processes import Server, blob_server
from dolmen.stores import open_store

SIZE = 1024
COUNT, LONG = 100_000, 1_000_000
MISSING = 1_000
_SETTINGS = {"DOLMEN_SCRUB_EVERY_DAYS": "0"}  # no other work than the one that is measured


@measures(
    Figure("replicate, small objects", "/s", 25_000, 80_000),
    Figure("replicate, in step", "s", 1, 0.05),
    Figure("replicate, 1,000 missing", "s", 2, 0.3),
)
def replication(bench: Bench) -> Iterator[Measured]:
    """Copies to empty volumes; then to one that is in step, and to one that lacks a few."""
    count = LONG if bench.long else COUNT
    fill(bench.folder / "source", count, size=SIZE)
    copying, in_step, missing = (Measured([], note=f"of {count:,}") for _ in range(3))
    with blob_server(bench.folder / "source", **_SETTINGS) as source:
        for at in range(bench.rounds):
            with blob_server(bench.folder / f"destination-{at}", **_SETTINGS) as destination:
                before = source.busy(), destination.busy(), time.process_time()
                copying.samples.append(count / _run(source, destination, count))
                after = source.busy(), destination.busy(), time.process_time()
                each = [(b - a) / count * 1e6 for a, b in zip(before, after, strict=True)]
                if at < bench.rounds - 1:
                    continue
                copying.note += (
                    "; µs of processor time a blob: source {:.0f}, destination {:.0f}, "
                    "replicator {:.0f}".format(*each)
                )
                yield copying
                in_step.samples = [_run(source, destination, 0) for _ in range(5)]
                yield in_step
                for begin in range(count, count + bench.rounds * MISSING, MISSING):
                    uvloop.run(add(source.base, range(begin, begin + MISSING), size=SIZE))
                    missing.samples.append(_run(source, destination, MISSING))
                yield missing


def _run(source: Server, destination: Server, expected: int) -> float:
    async def run() -> float:
        async with (
            aclosing(await open_store(source.base)) as origin,
            aclosing(await open_store(destination.base)) as target,
        ):
            return await copied(origin, target, expected)

    return uvloop.run(run())
