"""memcached as a store, on real servers: the one suite, forgetting, failing."""

import asyncio
import hashlib
import os
import random

import pytest
from dolmen.stores.memcached.item import PART
from dolmen.stores.memcached.store import WHOLE

from dolmen.errors import BadSetting, Corrupt, Full, NotFound, OutcomeUnknown, Unavailable
from dolmen.payload import Bytes, Stream, read_whole
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores import open_store
from dolmen.stores.memcached import MemcachedStore, connection
from dolmen.testing.conformance import Conformance, Place
from engines.memcached import Memcached


@pytest.fixture(autouse=True)
def _server(request, memcached):
    if request.cls is not None:
        request.cls.server = memcached


class TestOneServer(Conformance):
    server: Memcached

    async def make_store(self, place: Place) -> BlobStore:
        prefix = hashlib.sha256(str(place.path).encode()).hexdigest()[:16]
        servers = [("127.0.0.1", self.server.port)]
        return MemcachedStore(servers, prefix, clock=Clock(place.time.wall), now=place.time.now)


@pytest.fixture
async def store(own_memcached):
    store = await open_store(own_memcached.url())
    yield store
    await store.aclose()


async def content(store, name, **options):
    return bytes(await read_whole((await store.get(name, **options)).payload))


def test_what_it_promises():
    assert MemcachedStore.capabilities == Capabilities(
        durable=False, largest=1 << 30, digests=False, ordered=False, conflicts=True
    )


async def test_several_servers_share_the_names_out(own_memcached, memcached):
    url = f"memcached://127.0.0.1:{own_memcached.port},127.0.0.1:{memcached.port}/shared"
    store = await open_store(url)
    data = {f"n{number}": os.urandom(number * 40_000) for number in range(40)}
    for name, body in data.items():
        await store.put(name, Bytes(body))
    assert {name: await content(store, name) for name in data} == data
    assert {info.name async for info in store.list()} == set(data)
    own_memcached.kill()
    found = 0
    for name, body in data.items():
        try:
            assert await content(store, name) == body
            found += 1
        except Unavailable:
            pass
    assert 10 < found < 30
    with pytest.raises(Unavailable, match=r"memcached at 127\.0\.0\.1"):
        [info async for info in store.list()]
    await store.aclose()


@pytest.mark.parametrize("own_memcached", [("-m", "64")], indirect=True)
async def test_what_it_drops_for_want_of_memory_is_not_there_and_never_half(store):
    rng = random.Random(1)
    sizes = [rng.choice((100, 20_000, 400_000, 1_500_000, 12_000_000)) for _ in range(80)]
    data = {f"n{number}": rng.randbytes(size) for number, size in enumerate(sizes)}
    for name, body in data.items():
        await store.put(name, Bytes(body))
    there = 0
    for name, body in data.items():
        try:
            assert await content(store, name) == body
            there += 1
        except NotFound:
            pass
        except Corrupt:  # dropped while it was read
            assert len(body) > WHOLE
    assert 0 < there < len(data)
    assert {info.name async for info in store.list()} <= set(data)
    assert "dropped" in (await store.condition()).remarks[1]
    await store.put("again", Bytes(b"x" * 3_000_000))
    assert await content(store, "again") == b"x" * 3_000_000


@pytest.mark.parametrize("own_memcached", [("-m", "64", "-M")], indirect=True)
async def test_one_that_may_not_drop_says_that_it_is_full(store):
    put = []

    async def fill():
        for number in range(200):
            await store.put(f"n{number}", Bytes(os.urandom(700_000)))
            put.append(f"n{number}")

    with pytest.raises(Full, match="no memory left"):
        await fill()
    assert len(put) > 20
    for name in put:
        assert len(await content(store, name)) == 700_000
    with pytest.raises(NotFound):
        await store.get(f"n{len(put)}")


async def test_a_blob_whose_part_is_gone_is_gone(store, own_memcached):
    await store.put("a", Bytes(os.urandom(3 * PART)))
    item, _ = await store._look("a")
    server = store._server("a")
    await server.write(b"md %b\r\n" % store._part(item.parts, 1))
    assert len(await content(store, "a", byte_range=(0, PART))) == PART
    with pytest.raises(NotFound):
        await store.get("a")
    with pytest.raises(NotFound):
        await store.stat("a")
    await store.put("a", Bytes(b"anew"))
    assert await content(store, "a") == b"anew"


async def test_parts_of_uploads_that_failed_or_lost_are_not_kept(store):
    async def breaks():
        yield b"1" * PART
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await store.put("a", Stream(3 * PART, breaks))
    data = os.urandom(2 * PART)
    await asyncio.gather(*(store.put("b", Bytes(data), stamp=stamp) for stamp in range(1, 8)))
    await store.put("b", Bytes(data), stamp=3)
    assert (await store.stat("b")).stamp == 7
    item, _ = await store._look("b")
    parts = [key for key in await store._keys(b"p:") if item.parts.hex().encode() not in key]
    ages = [
        await store._server(name).read(b"mg %bp:%b t\r\n" % (store._prefix, key))
        for key in parts
        for name in "ab"
    ]
    assert all(int(age.flag(b"t")) > 0 for age in ages)  # they go by themselves
    assert await content(store, "b") == data


async def test_a_server_that_ends_and_comes_back(store, own_memcached):
    await store.put("a", Bytes(b"a"))
    own_memcached.kill()
    for _ in range(3):
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await store.get("a")
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await store.put("b", Bytes(b"b"))
    own_memcached.start()
    with pytest.raises(NotFound):
        await store.get("a")
    await store.put("b", Bytes(b"b"))
    assert await content(store, "b") == b"b"


async def test_one_killed_in_the_middle_of_a_put_shows_nothing_of_it(store, own_memcached):
    async def pieces():
        for number in range(6):
            if number == 3:
                own_memcached.kill()
                own_memcached.start()
            yield bytes([number]) * PART

    with pytest.raises((Unavailable, OutcomeUnknown)):
        await store.put("a", Stream(6 * PART, pieces))
    with pytest.raises(NotFound):
        await store.get("a")


async def test_one_that_does_not_answer_is_given_up(store, own_memcached, monkeypatch):
    await store.put("a", Bytes(b"a"))
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    own_memcached.pause()
    with pytest.raises(Unavailable, match="did not answer within"):
        await store.get("a")
    with pytest.raises((Unavailable, OutcomeUnknown)):
        await store.put("b", Bytes(b"b"))
    own_memcached.go_on()
    assert await content(store, "a") == b"a"


async def test_nobody_listening_is_unavailable(own_memcached):
    own_memcached.kill()
    store = await open_store(own_memcached.url())
    with pytest.raises(Unavailable, match=r"can't connect to memcached at 127\.0\.0\.1"):
        await store.get("a")
    await store.aclose()
    own_memcached.start()


async def test_many_at_once_share_a_connection(store):
    names = [f"n{number}" for number in range(500)]
    await asyncio.gather(*(store.put(name, Bytes(name.encode())) for name in names))
    found = await asyncio.gather(*(content(store, name) for name in names))
    assert found == [name.encode() for name in names]
    lines = await store._servers[0].lines(b"stats\r\n")
    connections = next(line for line in lines if b" total_connections " in line)
    assert int(connections.split()[2]) <= 4


@pytest.mark.parametrize(
    "url",
    ["memcached:", "memcached://", "memcached://a:b", "memcached://a:1,", "memcached://a/b/c"],
)
async def test_a_url_that_is_none_is_explained(url):
    with pytest.raises(BadSetting, match="write memcached://HOST:PORT"):
        await open_store(url)
