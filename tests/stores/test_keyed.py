"""The blob store above a key-value store, on the smallest driver there is: SQLite."""

import asyncio
import random
import sqlite3
import tracemalloc

import pytest

from dolmen.errors import (
    Conflict,
    Corrupt,
    DolmenError,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from dolmen.payload import Stream
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Outcome
from dolmen.stores.keyed import INLINE, open_keyed
from dolmen.testing import calls
from dolmen.testing.conformance import Place, Time
from dolmen.testing.conformance.material import (
    at,
    content,
    info_of,
    names,
    noise,
    read,
    recomputed,
    same,
)
from stores.keyed_suite import Keyed, put
from stores.sqlite import SqliteDriver

PART = 40_000
DAMAGE = "UPDATE kept SET value = {} WHERE CAST(key AS TEXT) LIKE ?"
DELETE = "DELETE FROM kept WHERE CAST(key AS TEXT) LIKE ?"
HOUR, DAY = 3_600, 86_400


class Unflushed(SqliteDriver):
    """Does not wait for the disk."""

    def __init__(self, path):
        super().__init__(path)
        self._database.execute("PRAGMA synchronous=OFF")


class Quick(Unflushed):
    part_size = PART


class TestSqlite(Keyed):
    model_examples = 12

    async def make_store(self, place: Place) -> BlobStore:
        driver = Unflushed(place.path.with_suffix(".db"))
        return await open_keyed(driver, clock=Clock(place.time.wall), now=place.time.now)


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
async def store(path, time):
    store = await open_keyed(Quick(path), clock=Clock(time.wall), now=time.now)
    yield store
    await store.aclose()


@pytest.fixture
def sql(path):
    """Asks the database itself."""

    def ask(text, *values):
        with sqlite3.connect(path) as database:
            rows = database.execute(text, values).fetchall()
        database.close()
        return rows

    return ask


def held(sql, letter):
    """How many keys of a kind there are."""
    return sql("SELECT count(*) FROM kept WHERE substr(key, 1, 1) = ?", letter)[0][0]


async def tidied(store):
    """Wait for what goes on in the background."""
    while store._parts._giving_up:
        await asyncio.wait(store._parts._giving_up)


# Parts


async def test_40_mib_go_in_and_out_in_bounded_memory(path):
    store = await open_keyed(SqliteDriver(path))
    size, piece, part = 40 << 20, memoryview(bytes(100_000)), SqliteDriver.part_size

    async def opened():
        for start in range(0, size, len(piece)):
            yield piece[: size - start]

    await put(store, "first", noise(2 * part))  # what is loaded once is loaded now
    tracemalloc.start()
    try:
        await calls.put(store, "name", Stream(size, opened))
        payload = (await store.get("name")).payload
        assert sum([len(each) async for each in payload]) == size
        assert tracemalloc.get_traced_memory()[1] < 10 * part
    finally:
        tracemalloc.stop()
        await store.aclose()


async def test_only_blobs_beyond_64_kib_have_parts_and_a_range_reads_those_it_touches(store, sql):
    await put(store, "small", noise(INLINE))
    assert held(sql, b"p") == 0
    data = noise(4 * PART + 5)
    await put(store, "name", data)
    assert held(sql, b"p") == 5
    for number in "03":
        assert sql(f"{DELETE} RETURNING 1", f"p%{number}")
    blob = await store.get("name", byte_range=(PART + 7, 3 * PART))
    assert await read(blob.payload) == data[PART + 7 : 3 * PART]
    blob = await store.get("name", byte_range=(4 * PART + 1, 5 * PART))
    assert await read(blob.payload) == data[4 * PART + 1 :]
    with pytest.raises(Corrupt, match="part 3 of name"):
        await read((await store.get("name", byte_range=(PART, 3 * PART + 1))).payload)


async def test_an_upload_holds_nothing_up_while_it_waits_for_its_client(store):
    data, half_way, go_on = noise(3 * PART), asyncio.Event(), asyncio.Event()

    async def opened():
        yield data[: 2 * PART]
        half_way.set()
        await go_on.wait()
        yield data[2 * PART :]

    uploads = [
        asyncio.ensure_future(calls.put(store, "name", Stream(len(data), opened), stamp=at(9)))
        for _ in range(6)
    ]
    await half_way.wait()
    assert (await put(store, "name", b"meanwhile", stamp=at(1))).outcome is Outcome.CREATED
    assert await content(store, "name") == b"meanwhile"
    go_on.set()
    outcomes = [(await upload).outcome for upload in uploads]
    assert sorted(outcomes) == [Outcome.CREATED, *[Outcome.UNCHANGED] * 5]
    assert await content(store, "name") == data


@pytest.mark.parametrize("given_up", ["broken", "refused", "superseded", "cancelled"])
async def test_parts_of_an_upload_that_came_to_nothing_go_at_once(store, sql, time, given_up):
    await put(store, "kept", noise(3 * PART), stamp=at(5))

    async def opened():
        yield noise(2 * PART)
        if given_up == "cancelled":
            upload.cancel()
            await asyncio.Event().wait()
        if given_up == "broken":
            raise ConnectionError
        yield noise(PART, 2)

    stamp = at(1) if given_up == "superseded" else None
    name = "other" if given_up in ("broken", "cancelled") else "kept"
    payload = Stream(3 * PART, opened)
    upload = asyncio.ensure_future(calls.put(store, name, payload, stamp=stamp))
    await asyncio.wait([upload])
    assert upload.cancelled() or upload.exception() or upload.result().outcome != "created"
    await tidied(store)
    assert held(sql, b"p") == 3
    time.advance(60)
    await store._parts.sweep()
    assert (held(sql, b"p"), held(sql, b"u")) == (3, 0)
    assert await content(store, "kept") == noise(3 * PART)
    assert await names(store.list()) == ["kept"]


@pytest.mark.parametrize("write", ["delete", "replace", "remove"])
async def test_what_is_replaced_stays_for_an_hour_for_those_who_read_it(store, sql, time, write):
    data = noise(5 * PART)
    await put(store, "name", data, stamp=at(1))
    under_way = (await store.get("name")).payload
    too_late = (await store.get("name")).payload
    if write == "delete":
        await calls.delete(store, "name")
    elif write == "replace":
        await put(store, "name", b"new", stamp=at(2))
    else:
        assert await calls.remove(store, "name", if_stamp=at(1))
    time.advance(HOUR - 10)
    await store._parts.sweep()
    assert await read(under_way) == data
    time.advance(20)
    await store._parts.sweep()
    assert (held(sql, b"p"), held(sql, b"u")) == (0, 0)
    with pytest.raises(Unavailable, match="deleted or replaced while it was read"):
        await read(too_late)
    if write == "replace":
        assert await content(store, "name") == b"new"


@pytest.mark.parametrize("when", ["in the middle", "at the end"])
async def test_an_upload_that_takes_over_a_day_fails_whole(store, sql, time, when):
    async def pieces():
        yield noise(PART)
        if when == "at the end":
            yield noise(PART)
        time.advance(DAY + 1)
        await store._parts.sweep()
        if when == "in the middle":
            yield noise(PART)

    with pytest.raises(Unavailable, match="took over a day"):
        await calls.put(store, "name", Stream(2 * PART, pieces))
    assert await names(calls.listing(store, tombstones=True)) == []
    assert (await store.digests()).count == 0


async def test_opening_sweeps(store, path, sql, time):
    await put(store, "name", noise(2 * PART))
    await calls.delete(store, "name")
    time.advance(HOUR + 1)
    other = await open_keyed(Quick(path), now=time.now)
    async with asyncio.timeout(20):
        while held(sql, b"p"):
            await asyncio.sleep(0)
    await other.aclose()


class Faulty(Quick):
    """Fails at its `fails_at`-th call that changes something: before it, or after it."""

    def __init__(self, path, fails_at, after):
        super().__init__(path)
        self.left, self.after = fails_at, after

    async def changed(self, change, *arguments, **options):
        self.left -= 1
        if self.left >= 0:
            return await change(*arguments, **options)
        if self.left == -1 and self.after:
            await change(*arguments, **options)
            raise OutcomeUnknown("the connection was lost")
        raise Unavailable("the connection was lost")

    async def swap(self, changes, *, grows=True):
        return await self.changed(super().swap, changes, grows=grows)

    async def set(self, key, value):
        await self.changed(super().set, key, value)

    async def delete(self, keys):
        await self.changed(super().delete, keys)


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("fails_at", range(1, 22))
async def test_wherever_it_breaks_off_nothing_is_half_visible_and_every_part_is_found(
    path, sql, time, fails_at, after
):
    store = await open_keyed(Faulty(path, fails_at, after), clock=Clock(time.wall), now=time.now)
    answered = {}
    for name, size, stamp in (
        *(("a", 3 * PART, at(1)), ("b", 10, at(1)), ("a", 2 * PART, at(2))),
        *(("b", 2 * PART, at(2)), ("a", 20, at(3)), ("b", 2 * PART + 1, at(1))),
    ):
        try:
            answer = await put(store, name, noise(size), stamp=stamp)
        except (Unavailable, OutcomeUnknown):
            break
        if answer.outcome != "superseded":
            answered[name] = size, stamp
    await tidied(store)
    await store.aclose()

    store = await open_keyed(Quick(path), clock=Clock(time.wall), now=time.now)
    found = {info.name: info async for info in calls.listing(store, tombstones=True)}
    for name, (_, stamp) in answered.items():
        assert found[name].stamp >= stamp
    for name, info in found.items():
        assert await content(store, name) == noise(info.size)
        assert info.stamp >= answered.get(name, (0, 0))[1]
    assert await store.digests() == await recomputed(store)
    time.advance(DAY + HOUR)
    await store._parts.sweep()
    parts = sum(-(-info.size // PART) for info in found.values() if info.size > INLINE)
    assert (held(sql, b"p"), held(sql, b"u")) == (parts, 0)
    await store.aclose()


async def test_stores_of_several_processes_agree_on_everything(store, path, sql, time):
    other = await open_keyed(Quick(path), clock=Clock(time.wall), now=time.now)
    rng = random.Random(1)
    both = (store, other)

    async def work(number):
        name, store = f"n{number % 7}", both[number % 2]
        data = noise(rng.choice((10, 70_000, 200_000)), number % 3)
        try:
            match rng.randrange(5):
                case 0:
                    await calls.delete(store, name)
                case 1:
                    await put(store, name, data, stamp=at(rng.randrange(100)))
                case 2:
                    await calls.remove(store, name, if_stamp=(await store.stat(name)).stamp)
                case 3:
                    info = await store.stat(name)
                    stamp, checksum = info.stamp + 1, info.checksum
                    await calls.touch(store, name, stamp=stamp, checksum=checksum)
                case _:
                    await put(store, name, data)
        except (Conflict, NotFound):
            pass

    await asyncio.gather(*(work(number) for number in range(200)))
    assert await store.digests() == await other.digests() == await recomputed(store)
    infos = [info async for info in other.list()]
    for info in infos:
        assert same(info, info_of(info.name, await content(store, info.name), stamp=info.stamp))
    await tidied(store)
    await tidied(other)
    time.advance(2 * HOUR)
    await store._parts.sweep()
    parts = sum(-(-info.size // PART) for info in infos if info.size > INLINE)
    assert held(sql, b"p") == parts
    assert (await store.notes()) == (await other.notes())
    await other.aclose()


# Damage: the suite flips bits, what else may be wrong is here


@pytest.mark.parametrize(
    ("size", "damage", "key"),
    [
        (1000, "substr(value, 1, length(value) - 1)", "e%name"),
        (3 * PART, "substr(value, 2)", "p%2"),
        (3 * PART, None, "p%2"),
    ],
)
async def test_a_copy_that_lacks_something_is_damaged_until_it_is_put(
    store, sql, size, damage, key
):
    data = noise(size)
    await put(store, "sound", b"", stamp=at(1))
    before = await store.digests()
    await put(store, "name", data, stamp=at(2))
    assert sql((DAMAGE.format(damage) if damage else DELETE) + " RETURNING 1", key)
    for ask in (content(store, "name"), store.get("name"), store.stat("name")):
        with pytest.raises(Corrupt):
            await ask
    assert await names(store.list()) == ["sound"]
    assert [name async for name in calls.quarantined(store)] == ["name"]
    assert await store.digests() == before == await recomputed(store)
    assert await put(store, "name", data, stamp=at(2)) == (Outcome.CREATED, at(2))
    assert await content(store, "name") == data
    assert await store.digests() == await recomputed(store)


async def test_what_is_read_wrong_once_is_not_quarantined(store, sql):
    await put(store, "name", noise(3 * PART))
    get, wrong = store._driver.get, iter([True])

    async def once_wrong(keys, *, head=False):
        values = await get(keys, head=head)
        if keys[0].startswith(b"p") and next(wrong, False):
            return [b"wrong"]
        return values

    store._driver.get = once_wrong
    with pytest.raises(Corrupt):
        await content(store, "name")
    assert await content(store, "name") == noise(3 * PART)
    assert [name async for name in calls.quarantined(store)] == []


async def test_an_entry_that_cannot_be_read_is_damaged_and_replaced_by_any_put(store, sql):
    await put(store, "sound", b"", stamp=at(1))
    await put(store, "name", noise(1000), stamp=at(9))
    head = DAMAGE.format("CAST(substr(value, 1, 20) || 'x' || substr(value, 22) AS BLOB)")
    assert sql(head + " RETURNING 1", "e%name")
    for ask in (store.get("name"), store.stat("name")):
        with pytest.raises(Corrupt):
            await ask
    assert await names(store.list()) == ["sound"]
    assert [name async for name in calls.quarantined(store)] == ["name"]
    assert await put(store, "name", b"new", stamp=at(2)) == (Outcome.CREATED, at(2))
    assert await content(store, "name") == b"new"
    assert await store.digests() == await recomputed(store)


async def test_a_closed_store_says_so(store):
    await store.aclose()
    for ask in (store.get("name"), put(store, "name", b"x"), store.digests()):
        with pytest.raises(DolmenError, match="closed"):
            await ask
