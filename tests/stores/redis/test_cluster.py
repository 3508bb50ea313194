"""A Redis Cluster whose slots move, whose servers fail, and whose replicas take over."""

import asyncio
import itertools

import pytest
from dolmen.stores.redis.cluster import _SLOTS
from dolmen.stores.redis.layout import PART
from dolmen.stores.redis.store import open_redis

from dolmen.errors import BadSetting, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.stores import open_store
from dolmen.testing.conformance.material import at, content, names, noise, recomputed
from engines.redis import DURABLE, RedisCluster, RedisServer, eventually, until


@pytest.fixture
async def store(cluster):
    store = await open_redis(f"redis+cluster://{cluster.addresses}", patience=2)
    yield store
    await store.aclose()


def some_of(tag, count):
    """So many names with this tag."""
    every = (f"n{number}" for number in itertools.count())
    return list(itertools.islice((name for name in every if partition_of(name) >> 8 == tag), count))


async def answered(ask):
    """The answer, once it is no `Unavailable` any more."""
    for _ in range(500):
        try:
            return await ask()
        except Unavailable:
            await asyncio.sleep(0.02)
    return await ask()


async def test_names_of_a_server_that_died_wait_for_it_and_others_go_on(store, cluster):
    data = {f"n{number}": noise(100 + number) for number in range(60)}
    await asyncio.gather(*(store.put(name, Bytes(body)) for name, body in data.items()))
    dead = cluster.servers[1]
    dead.kill()
    gone = set()
    for _ in range(2):  # before and after the others found out
        for name, body in data.items():
            try:
                assert await content(store, name) == body
                await store.put(f"{name}-", Bytes(body))
            except Unavailable:
                gone.add(name)
        until(lambda: "fail" in cluster.servers[0].cli("CLUSTER", "NODES"))
    assert 10 < len(gone) < 40
    with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:"):
        await names(store.list())
    condition = await store.condition()
    assert not condition.writable
    assert any(dead.address in reason for reason in condition.reasons)
    dead.start()
    until(cluster.sound)
    for name, body in data.items():
        assert await answered(lambda name=name: content(store, name)) == body
    assert await store.digests() == await recomputed(store)


async def test_while_a_slot_moves_reads_and_lists_are_whole_and_writes_wait(store, cluster):
    tag = 0xA7
    *small, large = some_of(tag, 31)
    data = {name: noise(500, number) for number, name in enumerate(small)}
    for name, body in data.items():
        await store.put(name, Bytes(body), stamp=at(1))
    await store.put(large, Bytes(noise(3 * PART)), stamp=at(1))
    digests = await store.digests()

    slot = _SLOTS[tag]
    source = cluster.holder(slot)
    target = next(server for server in cluster.servers if server is not source)
    ids = [server.cli("CLUSTER", "MYID") for server in (source, target)]
    target.cli("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[0])
    source.cli("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[1])

    def move(*keys):
        source.cli("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)

    async def whole():
        for name, body in data.items():
            assert await content(store, name) == body
        assert await content(store, large) == noise(3 * PART)
        assert sorted(await names(store.list())) == sorted([*data, large])
        assert await store.digests() == digests

    def replace(name):
        return lambda: store.put(name, Bytes(noise(2 * PART, 1)), stamp=at(2))

    # A write needs all that it touches on one server, or is not done at all.
    entries = [key for key in source.held("*:e:*") if not key.endswith(f":{large}")]
    moved = entries[0].rpartition(":")[2]
    for keys, writes in (
        (source.held("*:p:*")[:2], [replace(large), lambda: store.delete(large, stamp=at(3))]),
        (entries[:10], [replace(moved), lambda: store.delete(moved, stamp=at(3))]),
        (source.held("*:order"), [replace(small[-1]), replace(some_of(tag, 32)[-1])]),
    ):
        move(*keys)
        await whole()
        for write in writes:
            with pytest.raises(Unavailable, match="TRYAGAIN"):
                await write()
        await whole()
    move(*source.held("*{a7}*"))
    for server in (target, source):
        server.cli("CLUSTER", "SETSLOT", str(slot), "NODE", ids[1])
    await whole()
    assert (await store.put(large, Bytes(noise(2 * PART, 1)), stamp=at(2))).outcome == "created"
    await store.delete(small[0], stamp=at(2))
    assert await store.digests() == await recomputed(store)
    assert len(target.held("*:p:*")) == 2
    assert source.held("*{a7}*") == []


async def test_a_replica_takes_over_for_a_master_that_died(store, cluster):
    data = {f"n{number}": noise(1000, number) for number in range(60)}
    master = cluster.servers[2]
    replica = cluster.add_replica(master)
    await asyncio.gather(*(store.put(name, Bytes(body)) for name, body in data.items()))
    until(lambda: master.info("master_repl_offset") == replica.info("master_repl_offset"))
    master.kill()
    replica.cli("CLUSTER", "FAILOVER", "TAKEOVER")
    for name, body in data.items():
        assert await answered(lambda name=name: content(store, name)) == body
        assert (await answered(lambda name=name: store.delete(name))).outcome == "created"
    assert await store.digests() == await recomputed(store)
    master.start()  # as its replica now
    until(lambda: master.info("master_link_status") == "up")
    await store.put("after", Bytes(b"x"))
    assert [info.name async for info in store.list()] == ["after"]


async def test_a_planned_failover_loses_nothing_that_was_answered(store, cluster):
    master = cluster.servers[0]
    replica = cluster.add_replica(master)
    done = []

    async def write(number):
        try:
            await store.put(f"n{number}", Bytes(noise(200, number)))
        except (Unavailable, OutcomeUnknown):
            return
        done.append(number)

    async def fail_over():
        await eventually(lambda: len(done) >= 50)
        replica.cli("CLUSTER", "FAILOVER")

    async def many():
        for start in range(0, 2000, 20):
            await asyncio.gather(*(write(number) for number in range(start, start + 20)))

    await asyncio.gather(fail_over(), many())
    until(lambda: replica.info("role") == "master")
    assert len(done) > 1000
    for number in done:
        assert await answered(lambda n=number: content(store, f"n{n}")) == noise(200, number)
    assert await store.digests() == await recomputed(store)


async def test_one_server_that_is_not_durable_is_enough(tmp_path):
    with RedisCluster(tmp_path, *DURABLE) as cluster:
        cluster.servers[1].set("appendonly", "no")
        store = await open_store(f"redis+cluster://{cluster.servers[0].address}")
        assert not store.capabilities.durable
        [remark] = (await store.condition()).remarks
        assert f"{cluster.servers[1].address} is not durable: appendonly is no" in remark
        cluster.servers[1].set("appendonly", "yes")
        await store.condition()
        assert store.capabilities.durable
        await store.aclose()


async def test_a_url_of_the_other_kind_is_told(redis_cluster, redis_server):
    with pytest.raises(BadSetting, match=r"mode cluster: the URL of a cluster begins with redis\+"):
        await open_store(f"redis://{redis_cluster.servers[0].address}")
    with pytest.raises(BadSetting, match=r"mode standalone: .* single server with redis://"):
        await open_store(f"redis+cluster://{redis_server.address}")


async def test_a_cluster_none_of_whose_servers_is_there_is_unavailable(tmp_path):
    ports = [RedisServer(tmp_path / str(number)).port for number in range(2)]
    store = await open_store("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports))
    for ask in (store.get("a"), store.put("a", Bytes(b"a")), store.condition()):
        with pytest.raises(Unavailable, match="can't be asked"):
            await ask
    await store.aclose()
