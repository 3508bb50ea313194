"""The PostgreSQL store: the one suite, several processes, damage, upkeep."""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable

import pytest

from dolmen.errors import BadSetting, Conflict, Corrupt, NotFound
from dolmen.http.eager import EagerRun
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities, Outcome, Put
from dolmen.stores.postgresql.migrations import MIGRATIONS
from dolmen.stores.postgresql.parts import PART
from dolmen.stores.postgresql.store import PostgresStore, open_url
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.conformance.material import at, content, names, noise, recomputed
from engines.postgresql import PostgresServer


class TestPostgres(Conformance):
    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: PostgresServer) -> None:
        self.server = postgres_server

    async def make_store(self, place: Place) -> BlobStore:
        schema = "s" + hashlib.sha1(str(place.path).encode()).hexdigest()
        url = self.server.schema(schema)
        if not place.path.exists():
            place.path.mkdir(parents=True)
            place.exits.callback(self.server.drop, schema)
        return await open_url(url, clock=Clock(place.time.wall), now=place.time.now)


async def test_what_it_promises(store: PostgresStore) -> None:
    assert store.capabilities == Capabilities(
        durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
    )
    assert (await store.condition()).remarks == []


@pytest.mark.parametrize("setting", ["synchronous_commit", "fsync", "full_page_writes"])
async def test_a_server_that_does_not_flush_is_not_durable(
    postgres_server: PostgresServer, url: str, setting: str
) -> None:
    if setting == "synchronous_commit":
        url += "&synchronous_commit=off"
    else:
        postgres_server.sql(f"ALTER SYSTEM SET {setting} = off", "SELECT pg_reload_conf()")
    try:
        store = await open_url(url)
        while store.capabilities.durable and setting != "synchronous_commit":  # it reloads soon
            await store.condition()
        assert not store.capabilities.durable
        [remark] = (await store.condition()).remarks
        assert f"does not count as durable: {setting} off" in remark
        await store.aclose()
    finally:
        postgres_server.sql("ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")


async def test_stores_of_several_processes_never_both_take_a_name(
    opened: Callable[[], Awaitable[PostgresStore]],
) -> None:
    stores = [await opened() for _ in range(3)]
    rng = random.Random(4)

    async def write(store: PostgresStore, name: str) -> Put | Conflict:
        try:
            return await store.put(name, Bytes(rng.randbytes(rng.choice((10, 100_000)))))
        except Conflict as conflict:
            return conflict

    for turn in range(5):
        asked = [(store, f"n{turn}-{number}") for number in range(60) for store in stores]
        rng.shuffle(asked)
        answers = await asyncio.gather(*(write(*each) for each in asked))
        assert sum(isinstance(answer, Put) for answer in answers) == 60
    # Nobody waits for locks in a circle, whatever partitions the batches share.
    shared = [f"s{number}" for number in range(400)]
    stamps = range(at(1), at(1) + 6)
    writes = [(name, stamp) for name in shared for stamp in stamps]
    rng.shuffle(writes)
    await asyncio.gather(
        *(
            stores[number % 3].put(name, Bytes(b"%d" % stamp), stamp=stamp)
            for number, (name, stamp) in enumerate(writes)
        )
    )
    for name in shared:
        assert await content(stores[0], name) == b"%d" % stamps[-1]
    assert await stores[1].digests() == await recomputed(stores[2])
    assert (await stores[0].digests()).count == 700


@pytest.mark.parametrize(
    ("size", "damage"),
    [
        (1000, "UPDATE {}.dolmen_blobs SET data = set_byte(data, 7, 1) WHERE size > 0"),
        (1000, "UPDATE {}.dolmen_blobs SET data = substr(data, 2) WHERE size > 0"),
        (3 * PART, "UPDATE {}.dolmen_parts SET data = set_byte(data, 7, 1) WHERE number = 1"),
        (3 * PART, "UPDATE {}.dolmen_parts SET data = substr(data, 2) WHERE number = 2"),
        (3 * PART, "DELETE FROM {}.dolmen_parts WHERE number = 2"),
    ],
)
async def test_a_damaged_copy_is_told_apart_left_out_and_replaced(
    postgres_server: PostgresServer, store: PostgresStore, schema: str, size: int, damage: str
) -> None:
    await store.put("sound", Bytes(b""), stamp=at(1))
    before = await store.digests()
    await store.put("name", Bytes(noise(size)), stamp=at(1))
    whole = await store.digests()
    postgres_server.sql(damage.format(schema))
    with pytest.raises(Corrupt, match="name in PostgreSQL is damaged"):
        await content(store, "name")
    for ask in (store.get("name"), store.stat("name")):
        with pytest.raises(Corrupt):
            await ask
    assert await names(store.list()) == ["sound"]
    assert await store.digests() == before
    answer = await store.put("name", Bytes(noise(size)), stamp=at(1))
    assert answer == (Outcome.CREATED, at(1))
    assert await content(store, "name") == noise(size)
    assert await store.digests() == whole == await recomputed(store)


async def test_handlers_that_run_without_a_task_are_served(store: PostgresStore) -> None:
    async def handler() -> list[str]:
        assert asyncio.current_task() is None
        await store.put("small", Bytes(b"x"))
        assert asyncio.current_task() is None  # a small put or get needs none
        assert await content(store, "small") == b"x"
        assert asyncio.current_task() is None
        await store.put("large", Bytes(noise(2 * PART)))
        assert await content(store, "large") == noise(2 * PART)
        await store.note("key", b"value")
        return await names(store.list())

    done: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    def ended(result: list[str], error: BaseException | None) -> None:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def begin() -> None:
        coro = handler()
        EagerRun(coro, coro.send(None), ended)

    asyncio.get_running_loop().call_soon(begin)
    assert sorted(await done) == ["large", "small"]


async def test_partitions_that_are_far_apart_are_listed_in_few_queries(
    store: PostgresStore,
) -> None:
    await asyncio.gather(*(store.put(f"n{number}", Bytes(b"")) for number in range(3000)))
    everything = [info async for info in store.list()]
    assert [info async for info in store.list(partitions=range(0, 65_536, 7))] == [
        info for info in everything if partition_of(info.name) % 7 == 0
    ]
    some = [3, 4, 5, *range(1000, 9000), 9001, *range(20_000, 60_000, 3)]
    wanted = [info for info in everything if partition_of(info.name) in set(some)]
    assert [info async for info in store.list(partitions=some)] == wanted
    middle = wanted[len(wanted) // 2].name
    after = [info async for info in store.list(partitions=some, after=middle)]
    assert after == wanted[len(wanted) // 2 + 1 :]


async def test_the_tables_are_made_once_however_many_open_them(
    postgres_server: PostgresServer, url: str, schema: str
) -> None:
    stores = await asyncio.gather(*(open_url(url) for _ in range(5)))
    for number, store in enumerate(stores):
        await store.put(f"n{number}", Bytes(b""))
    assert len(await names(stores[0].list())) == 5
    for store in stores:
        await store.aclose()
    applied = postgres_server.sql(f"SELECT count(*) FROM {schema}.dolmen_migrations")
    assert applied == str(len(MIGRATIONS))


async def test_tables_of_a_newer_dolmen_are_left_alone(
    postgres_server: PostgresServer, store: PostgresStore, url: str, schema: str
) -> None:
    postgres_server.sql(f"INSERT INTO {schema}.dolmen_migrations VALUES (999)")
    with pytest.raises(BadSetting, match=r"version 999, .* up to 1: use a newer dolmen"):
        await open_url(url)


async def test_names_are_ordered_by_their_bytes_whatever_the_database_thinks(
    postgres_server: PostgresServer,
) -> None:
    postgres_server.sql(
        "CREATE DATABASE german TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de'"
    )
    store = await open_url(postgres_server.url(database="german"))
    by_partition: dict[int, list[str]] = {}
    for number in range(70_000):
        for name in (f"N{number}", f"n{number}", f"n-{number}"):
            by_partition.setdefault(partition_of(name), []).append(name)
    crowded = max(by_partition.values(), key=len)
    await asyncio.gather(*(store.put(name, Bytes(b"")) for name in crowded))
    assert await names(store.list()) == sorted(crowded) != sorted(crowded, key=str.lower)
    with pytest.raises(NotFound):
        await store.get("absent")
    await store.aclose()


async def test_whether_it_flushes_is_known_before_the_first_write(server: PostgresServer) -> None:
    server.kill()
    server.settings["fsync"] = "off"
    store = await open_url(server.url())  # it is not there yet
    server.start()
    await store.put("a", Bytes(b"a"))
    assert not store.capabilities.durable
    await store.aclose()
