"""PostgreSQL as a store: several processes, killed, stopped, full, read-only, refusing."""

import asyncio
import contextlib
import hashlib
import itertools
import random

import pytest

from dolmen.errors import (
    BadSetting,
    Full,
    NotFound,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities, Outcome
from dolmen.stores import open_store
from dolmen.stores.postgresql import open_url
from dolmen.testing import calls
from dolmen.testing.conformance import Place
from dolmen.testing.conformance.material import at, content, names, noise, recomputed
from engines.postgresql import PostgresServer
from stores.keyed_suite import Faults, Keyed, put

PART = 1 << 20
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    with PostgresServer(tmp_path_factory.mktemp("postgresql") / "data") as server:
        yield server


class TestPostgres(Keyed):
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


@pytest.fixture
def schema(postgres_server):
    """A schema of the test's own on the server that tests share."""
    name = f"t{next(_numbers)}"
    postgres_server.schema(name)
    yield name
    postgres_server.drop(name)


@pytest.fixture
async def opened(postgres_server, schema):
    """Opens the store of the schema, as often as it is called."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one():
            store = await open_url(postgres_server.url(schema))
            stack.push_async_callback(store.aclose)
            return store

        yield open_one


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, to be treated badly."""
    with PostgresServer(tmp_path / "data") as server:
        yield server


@pytest.fixture
async def store(server):
    """A store on that server, in the schema `public`."""
    store = await open_url(server.url())
    yield store
    await store.aclose()


async def killed(server, store):
    """Kill the server, and let the store find out."""
    server.kill()
    with pytest.raises(Unavailable):
        await store.stat("name")


# What it is and how it is set


async def test_what_it_promises(opened):
    store = await opened()
    assert store.capabilities == Capabilities(
        durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
    )
    assert (await store.condition()).remarks == []


@pytest.mark.parametrize("setting", ["synchronous_commit", "fsync", "full_page_writes"])
async def test_a_server_that_does_not_flush_is_not_durable(postgres_server, schema, setting):
    url = postgres_server.url(schema)
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


async def test_whether_it_flushes_is_known_before_the_first_write(server):
    server.kill()
    server.settings["fsync"] = "off"
    store = await open_url(server.url())  # it is not there yet
    server.start()
    await put(store, "a", b"a")
    assert not store.capabilities.durable
    await store.aclose()


async def test_the_table_is_made_once_however_many_open_it_and_a_newer_one_left_alone(
    postgres_server, schema
):
    url = postgres_server.url(schema)
    stores = await asyncio.gather(*(open_url(url) for _ in range(5)))
    for number, store in enumerate(stores):
        await put(store, f"n{number}", b"")
    assert len(await names(stores[0].list())) == 5
    assert len({(await store.notes())["identity"] for store in stores}) == 1
    for store in stores:
        await store.aclose()
    comment = f"COMMENT ON TABLE {schema}.dolmen_kept IS"
    postgres_server.sql(f"{comment} '999'")
    with pytest.raises(BadSetting, match=r"version 999, .* up to 1: use a newer dolmen"):
        await open_url(url)


async def test_stores_of_several_processes_end_with_the_newest_and_never_in_a_deadlock(opened):
    stores = [await opened() for _ in range(3)]
    rng = random.Random(4)

    shared = [f"s{number}" for number in range(300)]
    stamps = range(at(1), at(1) + 6)
    writes = [(name, stamp) for name in shared for stamp in stamps]
    rng.shuffle(writes)
    await asyncio.gather(
        *(
            put(stores[number % 3], name, b"%d" % stamp, stamp=stamp)
            for number, (name, stamp) in enumerate(writes)
        )
    )
    for name in shared:
        assert await content(stores[0], name) == b"%d" % stamps[-1]
    assert await stores[1].digests() == await recomputed(stores[2])
    assert (await stores[0].digests()).count == 300


# Killed, stopped, not there


class TestFaults(Faults):
    @pytest.fixture
    async def store(self, server):
        store = await open_url(server.url(), patience=2)
        yield store
        await store.aclose()


@pytest.mark.parametrize("end", ["killed", "late"])
async def test_the_outcome_of_a_commit_that_gets_no_answer_is_unknown(server, end):
    store = await open_url(server.url(), patience=30 if end == "killed" else 3)
    await put(store, "before", b"x")
    # A commit waits for a standby that is not there.
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    for number in itertools.count():  # until the server has read its settings
        name = f"n{number}"
        under_way = asyncio.ensure_future(put(store, name, b"content"))
        while not under_way.done() and server.sql(waiting) == "0":
            await asyncio.sleep(0)
        if not under_way.done():
            break
    if end == "killed":
        server.kill()
    with pytest.raises(OutcomeUnknown, match="the write may have happened"):
        await under_way
    await killed(server, store)
    (server.folder / "postgresql.auto.conf").unlink()
    server.start()
    assert await content(store, name) == b"content"
    assert (await put(store, name, b"content")).outcome is Outcome.UNCHANGED
    assert await store.digests() == await recomputed(store)
    await store.aclose()


# Refused


async def test_who_is_refused_is_told_what_to_mend(server):
    server.sql("CREATE ROLE guarded LOGIN PASSWORD 'right'", "CREATE SCHEMA his")
    hba = "host all guarded all scram-sha-256\nhost all all all trust\n"
    (server.folder / "pg_hba.conf").write_text(hba)
    server.sql("SELECT pg_reload_conf()")
    right = server.url("his", user="guarded:right")
    server.sql("GRANT USAGE ON SCHEMA his TO guarded")
    with pytest.raises(BadSetting, match="GRANT CREATE, USAGE ON SCHEMA"):
        await open_store(right)
    server.sql("GRANT CREATE ON SCHEMA his TO guarded")
    store = await open_store(right)
    await put(store, "name", b"x")
    for url, hint in (
        (server.url("his", user="guarded:wrong"), "mend user and password"),
        (server.url("his", user="guarded"), "password"),
        (server.url("his", user="nobody"), "mend user and password"),
        (server.url("his", database="wrong"), "mend the database in the store's URL"),
        (server.url("wrong"), "CREATE SCHEMA NAME"),
        (server.url("his") + "&work_men=1MB", "doesn't know"),
        (server.url("his") + "&work_mem=lots", "doesn't know"),
        ("postgresql://127.0.0.1:port/dolmen", "write postgresql://"),
        ("postgresql://127.0.0.1:99999/dolmen", "write postgresql://"),
        ("postgresql://127.0.0.1/dolmen?sslmode=maybe", "write postgresql://"),
        ("postgresql://127.0.0.1/dolmen?target_session_attrs=any-one", "write postgresql://"),
    ):
        with pytest.raises(BadSetting, match=hint) as caught:
            await open_store(url)
        assert "wrong@" not in str(caught.value)
        assert "\n" not in str(caught.value)
    # Later on it is something that may be mended while dolmen runs.
    server.sql(
        "ALTER ROLE guarded PASSWORD 'another'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'",
    )
    for _ in range(8):
        with pytest.raises(Unavailable):
            await store.get("name")
    with pytest.raises(Unavailable, match="mend user and password"):
        await store.get("name")
    server.sql("ALTER ROLE guarded PASSWORD 'right'")
    assert await content(store, "name") == b"x"
    await store.aclose()


async def test_a_read_only_server_is_read(server, store):
    await put(store, "name", b"content")
    server.sql(
        "CREATE SCHEMA empty", "ALTER DATABASE dolmen SET default_transaction_read_only = on"
    )
    read_only = await open_store(server.url())
    assert await content(read_only, "name") == b"content"
    assert await names(read_only.list()) == ["name"]
    for call in (
        put(read_only, "other", b"x"),
        put(read_only, "other", noise(2 * PART)),
        calls.delete(read_only, "name"),
        read_only.note("key", b""),
    ):
        with pytest.raises(ReadOnly, match="read-only transaction"):
            await call
    condition = await read_only.condition()
    assert not condition.writable
    assert "read-only" in condition.reasons[0]
    await read_only.aclose()
    with pytest.raises(ReadOnly):
        await open_store(server.url("empty"))
    assert (await put(store, "other", b"x")).outcome is Outcome.CREATED


# Full


async def test_a_disk_without_room_refuses_what_finds_none_and_goes_on_otherwise(server, store):
    await put(store, "small", b"x")
    await killed(server, store)
    # No file grows beyond this, as if its disk were full.
    server.file_limit = (16 << 20) + 4096
    server.start()
    kept = itertools.count()

    async def fill():
        for number in kept:
            await put(store, f"n{number}", noise(PART, number))

    with pytest.raises(Full, match="could not extend file"):
        await fill()
    number = next(kept) - 1
    with pytest.raises(NotFound):
        await store.get(f"n{number}")
    assert number > 5
    for there in range(number):
        assert await content(store, f"n{there}") == noise(PART, there)
        await calls.delete(store, f"n{there}")
    puts = [put(store, f"m{number}", noise(60_000, number)) for number in range(300)]
    *answers, deleted = await asyncio.gather(
        *puts, calls.delete(store, "small"), return_exceptions=True
    )
    assert not isinstance(deleted, BaseException)  # it needs next to no room
    refused = sum(isinstance(answer, Full) for answer in answers)
    assert refused > 0
    assert len(await names(store.list())) == 300 - refused
    server.sql(
        "UPDATE dolmen_kept SET value = decode(repeat('00', 8), 'hex')"
        " || substring(value FROM 9) WHERE key >= 'u' AND key < 'v'"
    )
    await store._parts.sweep()
    server.sql("VACUUM dolmen_kept")
    assert (await put(store, "again", noise(4 * PART))).outcome is Outcome.CREATED
    assert await content(store, "again") == noise(4 * PART)
