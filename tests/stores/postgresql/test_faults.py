"""A PostgreSQL server that is killed, stopped, full, read-only, or refuses."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable

import pytest
from dolmen.stores.postgresql.parts import PART
from dolmen.stores.postgresql.store import PostgresStore, open_url

from dolmen.errors import (
    BadSetting,
    DolmenError,
    Full,
    NotFound,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.payload import Bytes, Piece, Stream
from dolmen.store import Outcome, Put
from dolmen.stores import open_store
from dolmen.stores.postgresql import parts
from dolmen.testing.conformance.material import content, names, noise, recomputed
from engines.postgresql import PostgresServer

NAMES = [f"n{number}" for number in range(40)]


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[PostgresStore]:
    """A store on a server of the test's own, in the schema `public`."""
    store = await open_url(server.url())
    yield store
    await store.aclose()


async def answers(calls: list[Awaitable[object]]) -> list[object]:
    """What calls under way at once return or raise."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def killed(server: PostgresServer, store: PostgresStore) -> None:
    """Kill the server, and let the store find out."""
    server.kill()
    with pytest.raises(Unavailable):
        await store.stat("name")


async def that_waits(server: PostgresServer, store: PostgresStore) -> tuple[str, Awaitable[Put]]:
    """A put whose commit waits for a standby that is not there, and its name."""
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    for number in itertools.count():  # until the server has read its settings
        put = asyncio.ensure_future(store.put(f"n{number}", Bytes(b"content")))
        while not put.done():
            await asyncio.sleep(0)
            if server.sql(waiting) != "0":
                return f"n{number}", put
    raise AssertionError


async def test_killed_in_the_middle_of_a_put_it_shows_nothing_of_it(
    server: PostgresServer, store: PostgresStore
) -> None:
    await store.put("before", Bytes(noise(2 * PART)))

    async def pieces() -> AsyncIterator[Piece]:
        for number in range(6):
            if number == 3:
                server.kill()
                server.start()
            yield noise(PART, number)

    with pytest.raises(Unavailable):
        await store.put("name", Stream(6 * PART, pieces))
    with pytest.raises(NotFound):
        await store.get("name")
    assert await names(store.list(tombstones=True)) == ["before"]
    assert await content(store, "before") == noise(2 * PART)
    server.sql("UPDATE dolmen_uploads SET due = now()")
    await parts.sweep(store._server)
    assert server.sql("SELECT count(*) FROM dolmen_parts") == "2"
    assert (await store.put("name", Bytes(noise(6 * PART)))).outcome is Outcome.CREATED
    assert await content(store, "name") == noise(6 * PART)


async def test_what_was_answered_for_survives_a_kill_and_the_next_request_works(
    server: PostgresServer, store: PostgresStore
) -> None:
    told: dict[str, bytes] = {}

    async def write(number: int) -> None:
        data = noise(100 + 3000 * number, number)
        await store.put(f"n{number}", Bytes(data))
        told[f"n{number}"] = data
        if len(told) == 150:
            server.kill()

    found = await answers([write(number) for number in range(300)])
    failed = [error for error in found if error is not None]
    assert failed
    assert all(isinstance(error, Unavailable | OutcomeUnknown) for error in failed), failed
    for call in (store.get("n0"), store.stat("n0"), store.digests(), store.notes()):
        with pytest.raises(Unavailable, match="PostgreSQL at"):
            await call
    server.start()
    for name, data in told.items():
        assert await content(store, name) == data
    assert await store.digests() == await recomputed(store)


async def test_requests_in_flight_fail_and_the_next_ones_work(
    server: PostgresServer, store: PostgresStore
) -> None:
    await asyncio.gather(*(store.put(name, Bytes(name.encode())) for name in NAMES))
    for _ in range(3):
        server.signal(signal.SIGSTOP)
        calls = [asyncio.ensure_future(store.get(name)) for name in NAMES]
        calls += [asyncio.ensure_future(store.put(f"{name}-", Bytes(b"-"))) for name in NAMES]
        await asyncio.sleep(0)
        server.kill()
        failed = await answers(list(calls))
        assert all(isinstance(error, Unavailable) for error in failed), failed
        server.start()
        assert [await content(store, name) for name in NAMES] == [n.encode() for n in NAMES]
        assert (await store.put("next", Bytes(b"-"))).outcome is not Outcome.SUPERSEDED
    assert sorted(await names(store.list())) == sorted([*NAMES, "next"])


@pytest.mark.parametrize("end", ["killed", "late"])
async def test_the_outcome_of_a_commit_that_gets_no_answer_is_unknown(
    server: PostgresServer, end: str
) -> None:
    store = await open_url(server.url(), patience=30 if end == "killed" else 3)
    await store.put("before", Bytes(b"x"))
    name, put = await that_waits(server, store)
    if end == "killed":
        server.kill()
    with pytest.raises(OutcomeUnknown, match="lost while it committed"):
        await put
    await killed(server, store)
    (server.folder / "postgresql.auto.conf").unlink()
    server.start()
    assert await content(store, name) == b"content"
    assert (await store.put(name, Bytes(b"content"))).outcome is Outcome.UNCHANGED
    assert await store.digests() == await recomputed(store)
    await store.aclose()


async def test_a_server_that_does_not_answer_is_given_up_and_taken_up_again(
    server: PostgresServer,
) -> None:
    store = await open_url(server.url(), patience=3)
    await store.put("name", Bytes(b"content"))
    await store.put("large", Bytes(noise(2 * PART)))
    server.signal(signal.SIGSTOP)
    failed = await answers(
        [
            store.get("name"),
            store.stat("name"),
            store.put("other", Bytes(b"x")),
            store.put("other", Bytes(noise(2 * PART))),
            store.digests(),
            store.condition(),
        ]
    )
    assert all(isinstance(error, Unavailable) for error in failed), failed
    server.signal(signal.SIGCONT)
    assert await content(store, "name") == b"content"
    assert await content(store, "large") == noise(2 * PART)
    assert (await store.put("other", Bytes(b"x"))).outcome is Outcome.CREATED
    await store.aclose()


async def test_a_server_that_is_not_there_yet_is_waited_for(
    server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    store = await open_store(server.url())
    assert "opened all the same" in caplog.text
    with pytest.raises(Unavailable, match=r"No such file|refused"):
        await store.get("name")
    server.start()
    assert (await store.put("name", Bytes(b"x"))).outcome is Outcome.CREATED
    await store.aclose()


async def test_nobody_listening_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    store = await open_store("postgresql://me:secret@127.0.0.1:1/dolmen")
    with pytest.raises(Unavailable, match=r"refused|failed") as caught:
        await store.put("name", Bytes(b"x"))
    assert "secret" not in caplog.text + str(caught.value)
    await store.aclose()


async def test_who_is_refused_is_told_what_to_mend(server: PostgresServer) -> None:
    server.sql("CREATE ROLE guarded LOGIN PASSWORD 'right'", "CREATE SCHEMA his")
    hba = "local all guarded scram-sha-256\nlocal all all trust\n"
    (server.folder / "pg_hba.conf").write_text(hba)
    server.sql("SELECT pg_reload_conf()")
    right = server.url("his", user="guarded:right")

    server.sql("GRANT USAGE ON SCHEMA his TO guarded")
    with pytest.raises(BadSetting, match="GRANT CREATE, USAGE ON SCHEMA"):
        await open_store(right)
    server.sql("GRANT CREATE ON SCHEMA his TO guarded")
    store = await open_store(right)
    await store.put("name", Bytes(b"x"))
    for url, hint in (
        (server.url("his", user="guarded:wrong"), "mend user and password"),
        (server.url("his", user="guarded"), "password"),
        (server.url("his", user="nobody"), "mend user and password"),
        (server.url("his", database="wrong"), "mend the database in the store's URL"),
        (server.url("wrong"), "CREATE SCHEMA NAME"),
        (server.url("his") + "&work_men=1MB", "doesn't know"),
        (server.url("his") + "&work_mem=lots", "doesn't know"),
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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:port/dolmen",
        "postgresql://127.0.0.1:99999/dolmen",
        "postgresql://127.0.0.1/dolmen?sslmode=maybe",
        "postgresql://127.0.0.1/dolmen?target_session_attrs=any-one",
    ],
)
async def test_a_url_that_is_none_is_explained(url: str) -> None:
    with pytest.raises(BadSetting, match="write postgresql://"):
        await open_store(url)


async def test_a_disk_without_room_refuses_puts_and_goes_on_otherwise(
    server: PostgresServer, store: PostgresStore
) -> None:
    await store.put("small", Bytes(b"x"))
    await killed(server, store)
    # No file grows beyond this: the one of the parts is full as if its disk were.
    server.file_limit = (16 << 20) + 4096
    server.start()

    put: list[str] = []

    async def fill() -> None:
        for number in range(30):
            await store.put(f"n{number}", Bytes(noise(PART, number)))
            put.append(f"n{number}")

    with pytest.raises(Full, match="could not extend file"):
        await fill()
    assert len(put) > 5
    for number, name in enumerate(put):
        assert await content(store, name) == noise(PART, number)
    with pytest.raises(NotFound):
        await store.get(f"n{len(put)}")
    assert (await store.put("another", Bytes(b"y"))).outcome is Outcome.CREATED  # elsewhere
    for name in put:
        await store.delete(name)
    server.sql("UPDATE dolmen_uploads SET due = now()")
    await parts.sweep(store._server)
    server.sql("VACUUM dolmen_parts")
    assert (await store.put("again", Bytes(noise(4 * PART)))).outcome is Outcome.CREATED
    assert await content(store, "again") == noise(4 * PART)
    assert await store.digests() == await recomputed(store)


async def test_of_small_puts_without_room_only_those_fail_that_find_none(
    server: PostgresServer, store: PostgresStore
) -> None:
    await store.put("small", Bytes(b"x"))
    await killed(server, store)
    server.file_limit = (16 << 20) + 4096
    server.start()
    data = os.urandom(60_000)
    found = await answers([store.put(f"n{number}", Bytes(data)) for number in range(400)])
    refused = [answer for answer in found if isinstance(answer, DolmenError)]
    assert 100 < len(refused) < 300
    assert all(isinstance(error, Full) for error in refused), refused
    # A delete needs next to no room, whoever it comes with.
    mixed = [store.put(f"m{number}", Bytes(data)) for number in range(3)]
    *full, deleted = await answers([*mixed, store.delete("small")])
    assert all(isinstance(error, Full) for error in full)
    assert not isinstance(deleted, BaseException)
    assert len(await names(store.list())) == 400 - len(refused)
    assert await store.digests() == await recomputed(store)


async def test_a_read_only_server_is_read(server: PostgresServer, store: PostgresStore) -> None:
    await store.put("name", Bytes(b"content"))
    server.sql(
        "CREATE SCHEMA empty", "ALTER DATABASE dolmen SET default_transaction_read_only = on"
    )
    read_only = await open_store(server.url())
    assert await content(read_only, "name") == b"content"
    assert await names(read_only.list()) == ["name"]
    for call in (
        read_only.put("other", Bytes(b"x")),
        read_only.put("other", Bytes(noise(2 * PART))),
        read_only.delete("name"),
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
    assert (await store.put("other", Bytes(b"x"))).outcome is Outcome.CREATED
