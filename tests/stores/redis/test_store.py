"""The Redis store keeps the contract, on one server and on a cluster of three."""

import asyncio
import hashlib
import random

import pytest
from dolmen.stores.redis.layout import INLINE, PART
from dolmen.stores.redis.store import open_redis

from dolmen.errors import Conflict, Corrupt, DolmenError, NotFound, Unavailable
from dolmen.payload import Bytes, Stream, read_whole
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities, Outcome
from dolmen.stores import open_store
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.conformance.material import at, content, info_of, names, noise, recomputed
from dolmen.testing.conformance.rivals import same
from engines.redis import RedisCluster, RedisServer, eventually


async def opened(url: str, place: Place) -> BlobStore:
    """The store of a place, under a prefix of its own."""
    prefix = hashlib.sha1(str(place.path).encode()).hexdigest()
    clock = Clock(place.time.wall)
    return await open_redis(f"{url}?prefix={prefix}", clock=clock, now=place.time.now)


class TestOneServer(Conformance):
    @pytest.fixture(autouse=True)
    def _servers(self, redis_server: RedisServer) -> None:
        self.url = f"redis://{redis_server.address}/1"

    async def make_store(self, place: Place) -> BlobStore:
        return await opened(self.url, place)


class TestCluster(Conformance):
    @pytest.fixture(autouse=True)
    def _servers(self, redis_cluster: RedisCluster) -> None:
        self.url = f"redis+cluster://{redis_cluster.addresses}"

    async def make_store(self, place: Place) -> BlobStore:
        return await opened(self.url, place)


@pytest.fixture
async def store(server):
    store = await open_store(f"redis://{server.address}")
    yield store
    await store.aclose()


async def test_what_it_promises(store):
    assert store.capabilities == Capabilities(
        durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
    )


async def test_two_processes_on_one_server_agree_on_everything(store, server):
    other = await open_store(f"redis://{server.address}")
    rng = random.Random(1)
    both = (store, other)

    async def work(number):
        name, store = f"n{number % 7}", both[number % 2]
        data = noise(rng.choice((10, 70_000, 2_000_000)), number % 3)
        try:
            match rng.randrange(5):
                case 0:
                    await store.delete(name)
                case 1:
                    await store.put(name, Bytes(data), stamp=at(rng.randrange(100)))
                case 2:
                    await store.remove(name, if_stamp=(await store.stat(name)).stamp)
                case 3:
                    info = await store.stat(name)
                    await store.touch(name, stamp=info.stamp + 1, checksum=info.checksum, meta=b"")
                case _:
                    await store.put(name, Bytes(data))
        except (Conflict, NotFound):
            pass

    await asyncio.gather(*(work(number) for number in range(400)))
    assert await store.digests() == await other.digests() == await recomputed(store)
    infos = [info async for info in other.list()]
    for info in infos:
        assert same(info, info_of(info.name, await content(store, info.name), stamp=info.stamp))
    parts = sum(-(-info.size // PART) for info in infos if info.size > INLINE)
    await eventually(lambda: len(server.held("*:p:*")) == parts)
    await other.aclose()


async def test_what_is_stored_does_not_expire_and_leaves_nothing_when_it_goes(store, server):
    empty = server.held()
    await store.put("large", Bytes(noise(3 * PART + 1)), stamp=at(1))
    await store.put("small", Bytes(b"x"), stamp=at(1))
    assert len(server.held("*:p:*")) == 4
    assert {server.cli("PTTL", key) for key in server.held()} == {"-1"}
    await store.put("large", Bytes(noise(2 * PART)), stamp=at(2))
    assert len(server.held("*:p:*")) == 2
    await store.delete("large", stamp=at(3))
    assert server.held("*:p:*") == []
    assert await store.remove("large", if_stamp=at(3))
    assert await store.remove("small", if_stamp=at(1))
    assert server.held() == empty


async def test_parts_of_a_put_that_fails_go_at_once_or_by_themselves(store, server):
    async def breaks():
        yield noise(2 * PART)
        await eventually(lambda: len(server.held("*:p:*")) >= 2)
        expiring.extend(int(server.cli("TTL", key)) for key in server.held("*:p:*"))
        raise Unavailable("the source went away")

    expiring = []
    with pytest.raises(Unavailable, match="went away"):
        await store.put("name", Stream(3 * PART, breaks))
    assert all(86_000 < seconds <= 86_400 for seconds in expiring)
    await store.put("name", Bytes(noise(2 * PART)), stamp=at(5))
    losing = await store.put("name", Bytes(noise(2 * PART, 1)), stamp=at(4))
    assert losing.outcome is Outcome.SUPERSEDED
    await store.aclose()  # which waits for what tidies up
    assert len(server.held("*:p:*")) == 2


async def test_a_put_whose_parts_expire_before_its_end_fails_whole(store, server):
    async def slow():
        for number in range(3):
            yield noise(PART, number)
        await eventually(lambda: len(server.held("*:p:*")) >= 2)
        server.cli("EXPIRE", server.held("*:p:*")[0], "0")
        yield b"end"

    with pytest.raises(Unavailable, match="the upload took over a day"):
        await store.put("name", Stream(3 * PART + 3, slow))
    with pytest.raises(NotFound):
        await store.get("name")
    assert server.held("*:order") == []


@pytest.mark.parametrize(("size", "part"), [(1000, False), (3 * PART, True)])
async def test_a_damaged_copy_is_told_left_out_and_replaced(store, server, size, part):
    data = noise(size)
    await store.put("name", Bytes(data), stamp=at(2))
    await store.put("sound", Bytes(b"x"), stamp=at(1))
    [key] = server.held("*:p:*:1" if part else "*:e:name")
    server.cli("SETRANGE", key, "500", "damaged")
    with pytest.raises(Corrupt):
        await content(store, "name")
    for look in (store.get("name"), store.stat("name")):
        with pytest.raises(Corrupt, match="replicate it"):
            await look
    assert await names(store.list()) == ["sound"]
    assert await store.digests() == await recomputed(store)
    assert (await store.put("name", Bytes(data), stamp=at(1))).outcome is Outcome.CREATED
    assert await content(store, "name") == data
    assert await store.digests() == await recomputed(store)
    assert len(server.held("*:p:*")) == (3 if part else 0)


async def test_a_missing_part_is_damage(store, server):
    await store.put("name", Bytes(noise(3 * PART)))
    server.cli("DEL", server.held("*:p:*:2")[0])
    blob = await store.get("name", byte_range=(0, PART))
    assert await read_whole(blob.payload) == noise(3 * PART)[:PART]
    with pytest.raises(Corrupt, match="part 2 of name"):
        await content(store, "name")
    with pytest.raises(Corrupt):
        await store.stat("name")


async def test_scripts_are_sent_again_where_the_server_forgot_them(store, server):
    await store.put("a", Bytes(b"a"))
    server.cli("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(store.put(f"n{number}", Bytes(b"x")) for number in range(50)))
    assert {answer.outcome for answer in answers} == {Outcome.CREATED}
    assert await store.digests() == await recomputed(store)


async def test_what_is_asked_at_once_shares_a_connection_and_a_write(store, server):
    many = [f"n{number}" for number in range(100)]
    await asyncio.gather(*(store.put(name, Bytes(name.encode())) for name in many))
    before = int(server.info("total_reads_processed"))
    found = await asyncio.gather(*(content(store, name) for name in many))
    assert found == [name.encode() for name in many]
    # All of it in one write of 6 KB; redis-cli itself reads twice, and TCP may cut it in two.
    assert int(server.info("total_reads_processed")) - before <= 6
    assert len(server.cli("CLIENT", "LIST").splitlines()) <= 6  # one, four of writes, redis-cli


async def test_a_store_may_be_called_without_a_task(server):
    """As the HTTP server does until a handler waits for the first time."""
    store = await open_redis(f"redis://{server.address}")
    await store.put("name", Bytes(b"x"))
    await store.aclose()
    store = await open_redis(f"redis://{server.address}")
    server.cli("CLIENT", "KILL", "TYPE", "normal")  # so that it has to connect
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    outcome = []

    def step(getting):
        try:
            getting.send(None).add_done_callback(lambda _: step(getting))
        except StopIteration as end:
            outcome.append(bytes(end.value.payload.whole))
            done.set()
        except DolmenError:  # it was under way when the connection ended
            step(store.get("name"))

    loop.call_soon(step, store.get("name"))
    await done.wait()
    assert outcome == [b"x"]
    await store.aclose()
