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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.figures import Bench, Figure, Measured, NotMeasured, measures
from bench.filling import name_of, put
from dolmen.payload import Bytes
from dolmen.replication import replicate
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # what starts engines is there
SIZE = 1024
CLIENTS = 50
COUNT = 20_000


@dataclass(frozen=True)
class Running:
    """An engine that runs: URLs of empty stores, and its tool's rates in so many seconds."""

    url: Callable[[str], str]
    get: Callable[[int], float]
    put: Callable[[int], float]


@dataclass(frozen=True)
class Engine:
    """`start` gets a folder. The marks are for gets and for puts, as ratios to the tool's."""

    name: str
    tool: str
    start: Callable[[Path], AbstractContextManager[Running]]
    get_marks: tuple[float, float] | tuple[None, None] = (None, None)
    put_marks: tuple[float, float] | tuple[None, None] = (None, None)
    count: int = COUNT
    """Blobs that are replicated."""

    def figures(self) -> tuple[Figure, ...]:
        """What is measured of it."""
        return (
            Figure(f"{self.name} replicate into", "/s"),
            Figure(f"{self.name} replicate out of", "/s"),
            Figure(f"{self.name} put 1 KiB", "/s", *self.put_marks, against=f"{self.tool} put"),
            Figure(f"{self.name} get 1 KiB", "/s", *self.get_marks, against=f"{self.tool} get"),
            Figure(f"{self.name} list", "/s"),
        )

    def run(self, bench: Bench) -> Iterator[Measured]:
        """Measure them."""
        with (
            self.start(bench.folder) as running,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            into, out_of = Measured([]), Measured([])
            for at in range(bench.rounds):  # first, for there are engines that list everything
                there, back = runner.run(_replicate(running.url(f"copy{at}"), self.count))
                into.samples.append(there)
                out_of.samples.append(back)
            yield into
            yield out_of
            store = runner.run(open_store(running.url("rates")))
            yield from _rates(bench, running, store, runner.run)
            yield Measured([runner.run(_list(store)) for _ in range(bench.rounds)])
            runner.run(store.aclose())


def _rates(
    bench: Bench,
    running: Running,
    store: BlobStore,
    run: Callable[[Coroutine[object, object, float]], float],
) -> Iterator[Measured]:
    puts, gets = Measured([]), Measured([])
    numbers = itertools.count()
    for _ in range(bench.rounds):
        puts.against.append(running.put(bench.seconds))
        puts.samples.append(run(_rate(lambda: _put(store, next(numbers)), bench.seconds)))
    yield puts
    rng = random.Random(1)
    stored = range(next(numbers))
    for _ in range(bench.rounds):
        gets.against.append(running.get(bench.seconds))
        gets.samples.append(run(_rate(lambda: _get(store, rng.choice(stored)), bench.seconds)))
    yield gets


async def _rate(ask: Callable[[], Awaitable[None]], seconds: int) -> float:
    """How often a second, by so many clients."""
    done = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await ask()
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done / (time.perf_counter() - start)


async def _put(store: BlobStore, number: int) -> None:
    await calls.put(store, name_of(number), Bytes(number.to_bytes(8, "big") + bytes(SIZE - 8)))


async def _get(store: BlobStore, number: int) -> None:
    blob = await store.get(name_of(number))
    if blob.payload.size != SIZE:
        raise NotMeasured("a blob came back in another size")


async def _list(store: BlobStore) -> float:
    start = time.perf_counter()
    count = 0
    async for _ in store.list():
        count += 1
    return count / (time.perf_counter() - start)


async def _replicate(url: str, count: int) -> tuple[float, float]:
    """Small blobs a second from memory to an empty store, and from there to memory."""
    source, destination = MemoryStore(), MemoryStore()
    await put(source, range(count), size=SIZE)
    store = await open_store(url)
    try:
        return await _copied(source, store, count), await _copied(store, destination, count)
    finally:
        await store.aclose()


async def _copied(source: BlobStore, destination: BlobStore, count: int) -> float:
    start = time.perf_counter()
    report = await replicate(source, destination)
    seconds = time.perf_counter() - start
    if not report.complete or report.copied != count:
        raise NotMeasured(f"{count} blobs were to be copied, but the report says {report}")
    return count / seconds


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotMeasured(f"{name} is not installed: run bench/install")
    return found


def _output(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NotMeasured(f"{command[0]}: {ran.stderr.strip()[-200:]}")
    return ran.stdout


def _found(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise NotMeasured(f"there is no {pattern} in {text[-200:]!r}")
    return float(found[1])


@contextmanager
def _memcached(folder: Path) -> Iterator[Running]:
    from engines.memcached import Memcached

    server = Memcached("-m", "2048")
    files = {}
    for what, share in (("get", 1.0), ("put", 0.0)):
        files[what] = folder / f"{what}.cfg"
        commands = f"0 {1 - share + 0.1 * share:g}\n1 {share * 0.9:g}\n"
        files[what].write_text(f"key\n64 64 1\nvalue\n{SIZE} {SIZE} 1\ncmd\n{commands}")

    def rate(what: str, seconds: int) -> float:
        return _found(
            r"TPS: (\d+)",
            _output(
                _program("memcaslap"),
                *("-s", f"127.0.0.1:{server.port}", "-T", "1", "-c", str(CLIENTS)),
                *("-t", f"{seconds}s", "-F", str(files[what])),
            ),
        )

    try:
        yield Running(server.url, lambda s: rate("get", s), lambda s: rate("put", s))
    finally:
        server.kill()


@contextmanager
def _redis(folder: Path) -> Iterator[Running]:
    from engines.redis import DURABLE, RedisServer

    def rate(test: str, seconds: int) -> float:
        count = str(40_000 * seconds if test == "get" else 5_000 * seconds)
        return _found(
            r"([\d.]+) requests per second",
            _output(
                _program("redis-benchmark"),
                *("-p", str(server.port), "-t", test, "-d", str(SIZE), "-c", str(CLIENTS)),
                *("-n", count, "-q"),
            ).split("\r")[-1],
        )

    with RedisServer(folder / "redis", *DURABLE) as server:
        yield Running(
            lambda prefix: f"redis://{server.address}?prefix={prefix}",
            lambda seconds: rate("get", seconds),
            lambda seconds: rate("set", seconds),
        )


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


@contextmanager
def _postgresql(folder: Path) -> Iterator[Running]:
    from engines.postgresql import PostgresServer

    with PostgresServer(folder / "data") as server:
        asyncio.run(_opened(server.schema("pgbench")))
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
            return _found(r"tps = ([0-9.]+)", said)

        yield Running(server.schema, lambda s: rate("get", s), lambda s: rate("put", s))


@contextmanager
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
        yield Running(
            server.url,
            lambda seconds: asyncio.run(rate("get", seconds)),
            lambda seconds: asyncio.run(rate("put", seconds)),
        )


async def _opened(url: str) -> None:
    await (await open_store(url)).aclose()


ENGINES = (
    Engine("memcached", "memcaslap", _memcached),
    Engine("Redis", "redis-benchmark", _redis, get_marks=(0.4, 0.6)),
    Engine("PostgreSQL", "pgbench", _postgresql, (0.6, 1.0), (0.6, 1.0)),
    Engine("S3 (rclone)", "obstore", _rclone, count=2_000),
)
for _engine in ENGINES:
    measures(*_engine.figures())(_engine.run)
