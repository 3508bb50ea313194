"""Engines through their stores, beside what each engine's own benchmark tool reaches.

50 requests are under way at once, of 1 KiB each, from this process; the tool does the same with
50 connections, on the same server, in turns.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import uvloop

from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.filling import name_of
from dolmen.payload import Bytes
from dolmen.stores import open_store
from dolmen.testing import calls

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # what starts engines is there
SIZE = 1024
CLIENTS = 50
COUNT = 20_000
"""Rows that pgbench reads among."""


@measures(
    Figure("Redis put 1 KiB", "/s", against="redis-benchmark put"),
    Figure("Redis get 1 KiB", "/s", 0.4, 0.6, against="redis-benchmark get"),
)
def redis(bench: Bench) -> Iterator[Measured]:
    from engines.redis import DURABLE, RedisServer

    if shutil.which("redis-benchmark") is None:
        raise NotMeasured("redis-benchmark is not installed: run bench/install")

    def rate(what: str) -> float:
        test, count = ("get", 40_000) if what == "get" else ("set", 5_000)
        load = ("-t", test, "-d", SIZE, "-c", CLIENTS, "-n", count * bench.seconds, "-q")
        command = ["redis-benchmark", "-p", server.port, *load]
        said = subprocess.check_output(list(map(str, command)), text=True)
        return _last(r"([\d.]+) requests per second", said)

    with RedisServer(bench.folder / "redis", *DURABLE) as server:
        yield from _measured(bench, f"redis://{server.address}?prefix=bench", rate)


_PGBENCH = {
    "get": """
        \\set n random(0, :count - 1)
        SELECT key, value FROM dolmen_kept WHERE key =
            ('e' || lpad(to_hex(:n % 65536), 4, '0') || 'n' || :n)::bytea;
    """,
    "put": """
        \\set n random(1000000, 2000000000)
        WITH digest AS (
            INSERT INTO dolmen_kept
            VALUES (('d' || lpad(to_hex(:n % 65536), 4, '0'))::bytea, 'count and size')
            ON CONFLICT (key) DO UPDATE SET value = excluded.value)
        INSERT INTO dolmen_kept
        VALUES (('e' || lpad(to_hex(:n % 65536), 4, '0') || 'n' || :n)::bytea,
            decode(:data, 'hex')) ON CONFLICT DO NOTHING;
    """,
}
"""What the store has to do for one request, as statements of one client."""


@measures(
    Figure("PostgreSQL put 1 KiB", "/s", 0.6, 1.0, against="pgbench put"),
    Figure("PostgreSQL get 1 KiB", "/s", 0.6, 1.0, against="pgbench get"),
)
def postgresql(bench: Bench) -> Iterator[Measured]:
    from engines.postgresql import PostgresServer

    async def make(url: str) -> None:
        await (await open_store(url)).aclose()

    def rate(what: str) -> float:
        script = server.folder / what
        script.write_text(_PGBENCH[what])
        load = ("-n", "-M", "prepared", "-c", CLIENTS, "-j", 1, "-T", bench.seconds)
        values = ("-D", f"count={COUNT}", "-D", f"data={'ab' * SIZE}")
        command = map(str, (*load, *values, "-f", script, "dolmen"))
        return _last(r"tps = ([0-9.]+)", server.client("pgbench", *command))

    with PostgresServer(bench.folder / "data") as server:
        asyncio.run(make(server.schema("pgbench")))
        server.sql(
            "SET search_path = pgbench",
            "INSERT INTO dolmen_kept SELECT"
            " ('e' || lpad(to_hex(n % 65536), 4, '0') || 'n' || n)::bytea,"
            f" decode(repeat('ab', {SIZE}), 'hex') FROM generate_series(0, {COUNT - 1}) n",
            "ANALYZE",
            "ALTER DATABASE dolmen SET search_path = pgbench",
        )
        yield from _measured(bench, server.schema("rates"), rate)


def _last(pattern: str, text: str) -> float:
    found = re.findall(pattern, text)
    if not found:
        raise NotMeasured(f"there is no {pattern} in {text[-200:]!r}")
    return float(found[-1])


def _measured(bench: Bench, url: str, tool: Callable[[str], float]) -> Iterator[Measured]:
    """Puts, then gets, of an empty store, each just behind the tool's rate of "put" or "get"."""
    puts, gets = Measured([]), Measured([])
    stored = 0
    rng = random.Random(1)

    async def put_and_get() -> None:
        async with aclosing(await open_store(url)) as store:

            async def put() -> None:
                nonlocal stored
                number, stored = stored, stored + 1
                data = number.to_bytes(8, "big") + bytes(SIZE - 8)
                await calls.put(store, name_of(number), Bytes(data))

            async def get() -> None:
                blob = await store.get(name_of(rng.randrange(stored)))
                if blob.payload.size != SIZE:
                    raise NotMeasured("a blob came back in another size")

            for what, measured, ask in (("put", puts, put), ("get", gets, get)):
                for _ in range(bench.rounds):
                    measured.against.append(await asyncio.to_thread(tool, what))
                    measured.samples.append(await _rate(ask, bench.seconds))

    uvloop.run(put_and_get())
    yield puts
    yield gets


async def _rate(ask: Callable[[], Awaitable[None]], seconds: int) -> float:
    """How often a second, by so many clients."""
    done = 0
    start = time.perf_counter()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < start + seconds:
            await ask()
            done += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done / (time.perf_counter() - start)
