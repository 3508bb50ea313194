"""Engines through their stores, beside what each engine's own benchmark tool reaches.

50 requests are under way at once, of 1 KiB each, from this process; the tool does the same with
50 connections, on the same server, in turns.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvloop

from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.filling import copied, name_of, put
from dolmen.payload import Bytes
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # what starts engines is there
T = TypeVar("T")
SIZE = 1024
CLIENTS = 50
COUNT = 20_000


@dataclass(frozen=True)
class Running:
    """An engine that runs: URLs of empty stores, and its tool's rate of "get" or "put"."""

    url: Callable[[str], str]
    rate: Callable[[str, int], float]
    """Requests a second, in so many seconds."""


Marks = tuple[float, float] | tuple[None, None]
NONE: Marks = (None, None)


def engine(
    name: str, tool: str, get: Marks = NONE, put: Marks = NONE, count: int = COUNT
) -> Callable[[Callable[[Path], Iterator[Running]]], None]:
    """Register what starts an engine in a folder. Marks are ratios to its tool's rates.

    `count` blobs are replicated.
    """

    def register(start: Callable[[Path], Iterator[Running]]) -> None:
        @measures(
            Figure(f"{name} replicate into", "/s"),
            Figure(f"{name} replicate out of", "/s"),
            Figure(f"{name} put 1 KiB", "/s", *put, against=f"{tool} put"),
            Figure(f"{name} get 1 KiB", "/s", *get, against=f"{tool} get"),
            Figure(f"{name} list", "/s"),
        )
        def run(bench: Bench) -> Iterator[Measured]:
            with (
                contextmanager(start)(bench.folder) as running,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                yield from _measured(bench, running, runner.run, count)

    return register


def _measured(
    bench: Bench, running: Running, run: Callable[[Coroutine[object, object, T]], T], count: int
) -> Iterator[Measured]:
    into, out_of, puts, gets = (Measured([]) for _ in range(4))
    for at in range(bench.rounds):  # first, for there are engines that list everything
        there, back = run(_replicated(running.url(f"copy{at}"), count))
        into.samples.append(count / there)
        out_of.samples.append(count / back)
    yield into
    yield out_of
    store = run(open_store(running.url("rates")))
    numbers = itertools.count()
    for _ in range(bench.rounds):
        puts.against.append(running.rate("put", bench.seconds))
        puts.samples.append(run(_rate(lambda: _put(store, next(numbers)), bench.seconds)))
    yield puts
    rng = random.Random(1)
    stored = range(next(numbers))
    for _ in range(bench.rounds):
        gets.against.append(running.rate("get", bench.seconds))
        gets.samples.append(run(_rate(lambda: _get(store, rng.choice(stored)), bench.seconds)))
    yield gets
    yield Measured([run(_listed(store)) for _ in range(bench.rounds)])
    run(store.aclose())


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


async def _put(store: BlobStore, number: int) -> None:
    await calls.put(store, name_of(number), Bytes(number.to_bytes(8, "big") + bytes(SIZE - 8)))


async def _get(store: BlobStore, number: int) -> None:
    blob = await store.get(name_of(number))
    if blob.payload.size != SIZE:
        raise NotMeasured("a blob came back in another size")


async def _listed(store: BlobStore) -> float:
    start = time.perf_counter()
    count = len([info async for info in store.list()])
    return count / (time.perf_counter() - start)


async def _replicated(url: str, count: int) -> tuple[float, float]:
    """Seconds from memory to an empty store, and from there to memory."""
    source = MemoryStore()
    await put(source, range(count), size=SIZE)
    async with aclosing(await open_store(url)) as store:
        return await copied(source, store, count), await copied(store, MemoryStore(), count)


def _output(program: str, *arguments: object) -> str:
    if shutil.which(program) is None:
        raise NotMeasured(f"{program} is not installed: run bench/install")
    command = [program, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NotMeasured(f"{program}: {ran.stderr.strip()[-200:]}")
    return ran.stdout


def _last(pattern: str, text: str) -> float:
    found = re.findall(pattern, text)
    if not found:
        raise NotMeasured(f"there is no {pattern} in {text[-200:]!r}")
    return float(found[-1])


@engine("memcached", "memcaslap")
def _memcached(folder: Path) -> Iterator[Running]:
    from engines.memcached import Memcached

    server = Memcached("-m", "2048")
    for what, commands in (("get", "0 0.1\n1 0.9\n"), ("put", "0 1\n1 0\n")):
        text = f"key\n64 64 1\nvalue\n{SIZE} {SIZE} 1\ncmd\n{commands}"
        (folder / f"{what}.cfg").write_text(text)

    def rate(what: str, seconds: int) -> float:
        where = ("-s", f"127.0.0.1:{server.port}", "-F", folder / f"{what}.cfg")
        load = ("-T", 1, "-c", CLIENTS, "-t", f"{seconds}s")
        return _last(r"TPS: (\d+)", _output("memcaslap", *where, *load))

    try:
        yield Running(server.url, rate)
    finally:
        server.kill()


@engine("Redis", "redis-benchmark", get=(0.4, 0.6))
def _redis(folder: Path) -> Iterator[Running]:
    from engines.redis import DURABLE, RedisServer

    def rate(what: str, seconds: int) -> float:
        test, count = ("get", 40_000 * seconds) if what == "get" else ("set", 5_000 * seconds)
        load = ("-t", test, "-d", SIZE, "-c", CLIENTS, "-n", count, "-q")
        said = _output("redis-benchmark", "-p", server.port, *load)
        return _last(r"([\d.]+) requests per second", said)

    with RedisServer(folder / "redis", *DURABLE) as server:
        yield Running(lambda prefix: f"redis://{server.address}?prefix={prefix}", rate)


PGBENCH = {
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


@engine("PostgreSQL", "pgbench", (0.6, 1.0), (0.6, 1.0))
def _postgresql(folder: Path) -> Iterator[Running]:
    from engines.postgresql import PostgresServer

    with PostgresServer(folder / "data") as server:
        asyncio.run(_made(server.schema("pgbench")))
        server.sql(
            "SET search_path = pgbench",
            "INSERT INTO dolmen_kept SELECT"
            " ('e' || lpad(to_hex(n % 65536), 4, '0') || 'n' || n)::bytea,"
            f" decode(repeat('ab', {SIZE}), 'hex') FROM generate_series(0, {COUNT - 1}) n",
            "ANALYZE",
            "ALTER DATABASE dolmen SET search_path = pgbench",
        )
        files = {}
        for what, script in PGBENCH.items():
            files[what] = server.socket / what  # where its user can read it
            files[what].write_text(script)

        def rate(what: str, seconds: int) -> float:
            options = ("-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "1", "-T", str(seconds))
            values = ("-D", f"count={COUNT}", "-D", f"data={'ab' * SIZE}")
            said = server.client("pgbench", *options, *values, "-f", str(files[what]), "dolmen")
            return _last(r"tps = ([0-9.]+)", said)

        yield Running(server.schema, rate)


@engine("S3 (rclone)", "obstore", count=2_000)
def _rclone(folder: Path) -> Iterator[Running]:
    """Beside it the driver alone, an object a request; the store needs two."""
    import obstore
    from obstore.store import S3Store

    from engines.rclone import BUCKET, KEY, SECRET, Rclone

    async def rate(what: str, seconds: int) -> float:
        bare = S3Store(
            BUCKET,
            prefix="bare",
            config={"endpoint": f"http://127.0.0.1:{server.port}", "region": "us-east-1"}
            | {"access_key_id": KEY, "secret_access_key": SECRET},
            client_options={"allow_http": True},
        )
        numbers = itertools.count()

        async def ask() -> None:
            path = f"{next(numbers) if what == 'put' else 0:08x}"
            if what == "put":
                await obstore.put_async(bare, f"{path}/head", bytes(SIZE))
            else:
                await (await obstore.get_async(bare, f"{path}/head")).bytes_async()

        return await _rate(ask, seconds)

    with Rclone(folder / "rclone") as server:
        yield Running(server.url, lambda what, seconds: asyncio.run(rate(what, seconds)))


async def _made(url: str) -> None:
    await (await open_store(url)).aclose()
