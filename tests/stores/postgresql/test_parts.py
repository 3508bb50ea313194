"""Large blobs in parts: memory, ranges, uploads that are given up or replaced."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from dolmen.stores.postgresql.parts import PART
from dolmen.stores.postgresql.store import SMALL, PostgresStore

from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.payload import Bytes, Piece, Stream
from dolmen.store import Outcome
from dolmen.stores.postgresql import parts
from dolmen.testing.conformance.material import at, content, names, noise, read
from engines.postgresql import PostgresServer

BYTE = memoryview(bytes(100_000))


@pytest.fixture
def sql(postgres_server: PostgresServer, schema: str) -> Callable[[str], str]:
    """Asks the server itself; tables are those of the test."""
    return lambda text: postgres_server.sql(f"SET search_path = {schema}", text)


@pytest.fixture
def swept(store: PostgresStore, sql: Callable[[str], str]) -> Callable[[], Awaitable[int]]:
    """Sweeps as if an hour had passed; returns how many parts are left."""

    async def sweep() -> int:
        sql("UPDATE dolmen_uploads SET due = due - interval '1 hour'")
        await parts.sweep(store._server)
        assert sql("SELECT count(*) FROM dolmen_uploads") == "0"
        return int(sql("SELECT count(*) FROM dolmen_parts"))

    return sweep


async def test_40_mib_go_in_and_out_in_bounded_memory(store: PostgresStore) -> None:
    size = 40 << 20

    async def opened() -> AsyncIterator[Piece]:
        for start in range(0, size, len(BYTE)):
            yield BYTE[: size - start]

    await store.put("first", Bytes(noise(2 * PART)))  # what is loaded once is loaded now
    assert await content(store, "first") == noise(2 * PART)
    tracemalloc.start()
    try:
        await store.put("name", Stream(size, opened))
        got = 0
        async for piece in (await store.get("name")).payload:
            got += len(piece)
        assert got == size
        assert tracemalloc.get_traced_memory()[1] < 10 * PART
    finally:
        tracemalloc.stop()


async def test_a_range_reads_only_the_parts_it_touches(
    store: PostgresStore, sql: Callable[[str], str]
) -> None:
    data = noise(4 * PART + 5)
    await store.put("name", Bytes(data))
    sql("DELETE FROM dolmen_parts WHERE number IN (0, 3)")
    blob = await store.get("name", byte_range=(PART + 7, 3 * PART))
    assert await read(blob.payload) == data[PART + 7 : 3 * PART]
    blob = await store.get("name", byte_range=(4 * PART + 1, 5 * PART))
    assert await read(blob.payload) == data[4 * PART + 1 :]
    with pytest.raises(Corrupt):
        await read((await store.get("name", byte_range=(PART, 3 * PART + 1))).payload)


async def test_small_blobs_have_no_parts(store: PostgresStore, sql: Callable[[str], str]) -> None:
    await store.put("small", Bytes(noise(SMALL)))
    assert sql("SELECT count(*) FROM dolmen_parts") == "0"
    await store.put("large", Bytes(noise(SMALL + 1)))
    assert sql("SELECT count(*) FROM dolmen_parts") == "1"


async def test_an_upload_holds_nothing_up_while_it_waits_for_its_client(
    store: PostgresStore, sql: Callable[[str], str]
) -> None:
    data, half_way, go_on = noise(3 * PART), asyncio.Event(), asyncio.Event()

    async def opened() -> AsyncIterator[Piece]:
        yield data[: 2 * PART]
        half_way.set()
        await go_on.wait()
        yield data[2 * PART :]

    uploads = [
        asyncio.ensure_future(store.put("name", Stream(len(data), opened), stamp=at(9)))
        for _ in range(30)  # more than there are connections
    ]
    await half_way.wait()
    assert (await store.put("name", Bytes(b"meanwhile"), stamp=at(1))).outcome is Outcome.CREATED
    assert await content(store, "name") == b"meanwhile"
    held = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    assert sql(held) == "0"
    go_on.set()
    outcomes = [(await upload).outcome for upload in uploads]
    assert sorted(outcomes) == [Outcome.CREATED, *[Outcome.UNCHANGED] * 29]
    assert await content(store, "name") == data


@pytest.mark.parametrize("given_up", ["broken", "refused", "superseded", "cancelled"])
async def test_parts_of_an_upload_that_came_to_nothing_go_an_hour_later(
    store: PostgresStore,
    sql: Callable[[str], str],
    swept: Callable[[], Awaitable[int]],
    given_up: str,
) -> None:
    await store.put("kept", Bytes(noise(3 * PART)), stamp=at(5))

    async def opened() -> AsyncIterator[Piece]:
        yield noise(2 * PART)
        if given_up == "cancelled":
            upload.cancel()
            await asyncio.Event().wait()
        if given_up == "broken":
            raise ConnectionError
        yield noise(PART, 2)

    stamp = at(1) if given_up == "superseded" else None
    name = "other" if given_up in ("broken", "cancelled") else "kept"
    upload = asyncio.ensure_future(store.put(name, Stream(3 * PART, opened), stamp=stamp))
    await asyncio.wait([upload])
    assert upload.cancelled() or upload.exception() or upload.result().outcome != "created"
    await parts.sweep(store._server)
    assert int(sql("SELECT count(*) FROM dolmen_parts")) > 3
    assert await swept() == 3
    assert await content(store, "kept") == noise(3 * PART)
    assert await names(store.list()) == ["kept"]


@pytest.mark.parametrize("write", ["delete", "replace", "remove"])
async def test_what_is_replaced_stays_for_those_who_read_it_and_then_goes(
    store: PostgresStore, swept: Callable[[], Awaitable[int]], write: str
) -> None:
    data = noise(5 * PART)
    await store.put("name", Bytes(data), stamp=at(1))
    under_way = (await store.get("name")).payload
    too_late = (await store.get("name")).payload
    if write == "delete":
        await store.delete("name")
    elif write == "replace":
        await store.put("name", Bytes(b"new"), stamp=at(2))
    else:
        assert await store.remove("name", if_stamp=at(1))
    assert await read(under_way) == data
    assert await swept() == 0
    with pytest.raises(Unavailable, match="replaced or deleted while it was read"):
        await read(too_late)
    if write == "replace":
        assert await content(store, "name") == b"new"
    else:
        with pytest.raises(NotFound):
            await store.stat("name")


@pytest.mark.parametrize("sweep", ["done", "begun"])
async def test_an_upload_that_stands_still_for_over_an_hour_is_given_up(
    store: PostgresStore,
    sql: Callable[[str], str],
    swept: Callable[[], Awaitable[int]],
    sweep: str,
) -> None:
    async def an_hour_passes() -> None:
        if sweep == "done":
            assert await swept() == 0
        else:
            sql("UPDATE dolmen_uploads SET due = '-infinity'")  # the first thing a sweep does

    async def in_the_middle() -> AsyncIterator[Piece]:
        yield noise(PART)
        await an_hour_passes()
        yield noise(PART)

    async def at_the_end() -> AsyncIterator[Piece]:
        yield noise(2 * PART)
        await an_hour_passes()

    for pieces in (in_the_middle, at_the_end):
        with pytest.raises(Unavailable, match="stood still for over an hour"):
            await store.put("name", Stream(2 * PART, pieces))
        assert await swept() == 0
        assert await names(store.list(tombstones=True)) == []
    assert (await store.digests()).count == 0


async def test_opening_sweeps(
    store: PostgresStore,
    opened: Callable[[], Awaitable[PostgresStore]],
    sql: Callable[[str], str],
) -> None:
    await store.put("name", Bytes(noise(200 * PART // 100)))
    await store.delete("name")
    sql("UPDATE dolmen_uploads SET due = now()")
    await opened()
    async with asyncio.timeout(20):
        while sql("SELECT count(*) FROM dolmen_parts") != "0":
            await asyncio.sleep(0)
