"""Redis as a store: one server, TLS, a cluster; killed, paused, full, refusing, set otherwise."""

import asyncio
import contextlib
import hashlib
import itertools
import random
import subprocess
import sys

import pytest
from redis import exceptions as said
from redis.crc import key_slot

from dolmen.errors import (
    BadSetting,
    DolmenError,
    Full,
    NotFound,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.names import partition_of
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores import open_store
from dolmen.stores.driver import Refused
from dolmen.stores.redis import open_url
from dolmen.stores.redis_servers import Servers
from dolmen.testing import calls
from dolmen.testing.conformance import Place
from dolmen.testing.conformance.material import at, content, names, noise, recomputed
from engines.redis import DURABLE, RedisCluster, RedisServer, free_port, until
from stores.keyed_suite import Faults, Keyed, answered, put

PART = 1 << 20


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis"), *DURABLE) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory):
    with RedisCluster(tmp_path_factory.mktemp("redis"), *DURABLE) as cluster:
        yield cluster


class OnRedis(Keyed):
    """The suite, each store under a prefix of its own."""

    async def make_store(self, place: Place) -> BlobStore:
        prefix = hashlib.sha1(str(place.path).encode()).hexdigest()
        clock = Clock(place.time.wall)
        return await open_url(f"{self.url}?prefix={prefix}", clock=clock, now=place.time.now)


class TestOneServer(OnRedis):
    @pytest.fixture(autouse=True)
    def _servers(self, redis_server: RedisServer) -> None:
        self.url = f"redis://{redis_server.address}/1"


class TestCluster(OnRedis):
    @pytest.fixture(autouse=True)
    def _servers(self, redis_cluster: RedisCluster) -> None:
        self.url = f"redis+cluster://{redis_cluster.addresses}"


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, to be treated badly."""
    with RedisServer(tmp_path / "redis", *DURABLE) as server:
        yield server


@pytest.fixture
async def store(server):
    """A store that does not wait for long."""
    store = await open_url(server.url(), patience=1)
    yield store
    server.go_on()
    await store.aclose()


async def noticed(store):
    """Until the store knows that its connections ended."""
    for server in store._driver._servers._servers.values():
        for connection in server._client.connection_pool._available_connections:
            while connection._reader and not connection._reader.at_eof():
                await asyncio.sleep(0)


async def test_what_it_promises(store):
    assert store.capabilities == Capabilities(
        durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
    )
    assert (await store.condition()).remarks == []


class TestFaults(Faults):
    pass


# Full


async def test_a_full_one_says_so_and_has_no_half_blob(store, server):
    await put(store, "old", noise(100_000), stamp=at(1))
    server.set("maxmemory", str(int(server.info("used_memory")) + 8 * PART))
    with pytest.raises(Full, match="maxmemory"):
        await put(store, "large", noise(20 * PART))
    kept = []

    async def fill():
        while True:
            await put(store, f"n{len(kept)}", noise(60_000, len(kept)))
            kept.append(f"n{len(kept)}")

    with pytest.raises(Full):
        await fill()
    assert len(kept) > 20
    for number, name in enumerate(kept):
        assert await content(store, name) == noise(60_000, number)
    for name in ("large", f"n{len(kept)}"):
        with pytest.raises(NotFound):
            await store.get(name)
    server.set("maxmemory", str(int(server.info("used_memory")) // 2))  # what is used varies
    condition = await store.condition()
    assert not condition.writable
    assert "is full" in condition.reasons[0]
    assert condition.free == 0
    # What frees or hardly takes memory goes on.
    info = await store.stat("n0")
    await calls.touch(store, "n0", stamp=info.stamp + 1, checksum=info.checksum)
    await calls.delete(store, "old", stamp=at(2))
    assert await calls.remove(store, "n1", if_stamp=(await store.stat("n1")).stamp)
    assert await store.digests() == await recomputed(store)
    server.set("maxmemory", "0")
    await put(store, "large", noise(20 * PART))
    assert (await store.condition()).writable


async def test_one_that_evicts_is_not_durable_and_never_gives_half_a_blob(store, server):
    server.set("maxmemory-policy", "allkeys-random")
    server.set("maxmemory", str(int(server.info("used_memory")) + 10 * PART))
    sizes = [random.Random(seed).choice((100, 60_000, 2 * PART)) for seed in range(60)]
    for number, size in enumerate(sizes):
        with contextlib.suppress(Unavailable):
            await put(store, f"n{number}", noise(size, number))
    lost = 0
    for number, size in enumerate(sizes):
        try:
            assert await content(store, f"n{number}") == noise(size, number)
        except DolmenError:
            lost += 1
    assert 0 < lost < len(sizes)
    assert len([info async for info in store.list()]) < len(sizes)
    condition = await store.condition()
    assert not store.capabilities.durable
    assert "maxmemory-policy is allkeys-random, not noeviction" in condition.remarks[0]


# Closed to it


@pytest.mark.parametrize(
    ("error", "read", "write"),
    [
        (said.BusyLoadingError("loading"), Unavailable, Unavailable),
        (said.ClusterDownError("down"), Unavailable, Unavailable),
        (said.TryAgainError("rehashing"), Unavailable, Unavailable),
        (said.ConnectionError("Error 111 connecting to a:1."), Unavailable, Unavailable),
        (said.ConnectionError("Connection closed by server."), Unavailable, OutcomeUnknown),
        (said.TimeoutError("Timeout reading from a:1"), Unavailable, OutcomeUnknown),
        (said.InvalidResponse("Protocol error"), Unavailable, OutcomeUnknown),
        (said.ResponseError("ERR unexpected"), Unavailable, OutcomeUnknown),
        (said.ResponseError("NOREPLICAS Not enough"), Unavailable, Unavailable),
        (said.ResponseError("MISCONF can't write"), ReadOnly, ReadOnly),
        (said.ReadOnlyError("replica"), ReadOnly, ReadOnly),
        (said.OutOfMemoryError("maxmemory"), Full, Full),
        (said.NoPermissionError("no permission"), Refused, Refused),
        (said.AuthenticationError("invalid password"), Refused, Refused),
    ],
)
async def test_what_an_error_means(error, read, write):
    servers = Servers("redis://127.0.0.1:1", 1)
    [server] = servers._servers.values()
    assert type(server.meaning(error)) is read
    assert type(server.meaning(error, writes=True)) is write
    await servers.aclose()


async def test_a_wrong_password_or_database_is_refused_when_it_is_opened(tmp_path):
    with RedisServer(tmp_path / "redis", "--requirepass", "p@ss/w:rd#?%") as server:
        as_admin = ("--no-auth-warning", "-a", "p@ss/w:rd#?%")
        server.cli(*as_admin, "ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all")
        right = "p%40ss%2Fw%3Ard%23%3F%25"
        for login in (f":{right}@", f"default:{right}@", "me:pw@"):
            store = await open_store(f"redis://{login}{server.address}/15")
            await put(store, "a", b"a", stamp=at(1))
            await store.aclose()
        for login in ("", ":hunter2@", "me:hunter2@", "nobody:hunter2@", "hunter2@"):
            with pytest.raises(BadSetting, match="user") as caught:
                await open_store(f"redis://{login}{server.address}")
            assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"
        with pytest.raises(BadSetting, match="no such database: mend its number"):
            await open_store(f"redis://me:pw@{server.address}/16")


async def test_a_replica_reads_and_takes_no_writes_until_it_is_the_master(store, server):
    await put(store, "a", b"a")
    server.cli("REPLICAOF", "127.0.0.1", str(free_port()))
    for ask in (
        put(store, "b", b"b"),
        put(store, "c", noise(PART)),
        calls.delete(store, "a"),
    ):
        with pytest.raises(ReadOnly, match="takes no writes"):
            await ask
    assert await content(store, "a") == b"a"
    condition = await store.condition()
    assert not condition.writable
    assert "is a replica" in condition.reasons[0]
    server.cli("REPLICAOF", "NO", "ONE")
    await put(store, "b", b"b")
    assert sorted(await names(store.list())) == ["a", "b"]


# Set otherwise

NO_EVICTION = "maxmemory-policy is volatile-ttl, not noeviction"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--appendonly", "no"), "appendonly is no, not yes"),
        (("--appendonly", "yes"), "appendfsync is everysec, not always"),
        ((*DURABLE[:4], "--maxmemory-policy", "volatile-ttl"), NO_EVICTION),
        (("--rename-command", "CONFIG", ""), "appendonly is unknown, not yes"),
    ],
)
async def test_settings_that_would_lose_writes_are_not_durable(tmp_path, options, why):
    with RedisServer(tmp_path / "redis", *options) as server:
        store = await open_store(f"redis://{server.address}")
        assert not store.capabilities.durable
        condition = await store.condition()
        assert condition.writable
        assert condition.reasons == []
        [remark] = condition.remarks
        assert remark.startswith(f"Redis at {server.address} is not durable: ")
        assert why in remark
        await store.aclose()


async def test_settings_changed_meanwhile_are_known_with_the_next_look_or_connection(store, server):
    assert store.capabilities.durable
    for value, durable in (("no", False), ("always", True)):
        server.set("appendfsync", value)
        await store.condition()
        assert store.capabilities.durable is durable
    server.kill()
    server.start("--appendonly", "no")
    await noticed(store)
    await put(store, "a", b"a")
    assert not store.capabilities.durable


async def test_over_tls_it_works_where_the_certificate_is_trusted(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=dolmen", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    options = ("--tls-port", str(port), *files, "--tls-auth-clients", "no")
    with RedisServer(tmp_path / "redis", *options, "--bind", "127.0.0.1 ::1") as server:
        url = f"rediss://127.0.0.1:{port}"
        with pytest.raises(BadSetting, match="certificate that is not trusted here"):
            await open_store(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        store = await open_store(url)
        await put(store, "large", noise(5 * PART + 1))
        assert await content(store, "large") == noise(5 * PART + 1)
        await store.aclose()
        store = await open_store(f"redis://[::1]:{server.port}")
        [remark] = (await store.condition()).remarks
        assert remark.startswith(f"Redis at [::1]:{server.port} ")
        await store.aclose()


async def test_without_its_library_the_line_to_type_is_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "dolmen.stores.redis", raising=False)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(BadSetting, match=r"needs hiredis.*pip install 'dolmen\[redis\]'"):
        await open_store("redis://127.0.0.1:1")


# Round trips


async def test_what_is_asked_at_once_shares_round_trips(store, server):
    many = [f"n{number}" for number in range(100)]
    await asyncio.gather(*(put(store, name, name.encode()) for name in many))
    before = int(server.info("total_reads_processed"))
    found = await asyncio.gather(*(content(store, name) for name in many))
    assert found == [name.encode() for name in many]
    # One write of 6 KB; redis-cli itself reads twice, and TCP may cut it in two.
    assert int(server.info("total_reads_processed")) - before <= 6


# A cluster


@pytest.fixture
def cluster(tmp_path):
    """A cluster of the test's own, that goes on with what is left of it."""
    with RedisCluster(tmp_path, *DURABLE, "--cluster-require-full-coverage", "no") as cluster:
        yield cluster


@pytest.fixture
async def spread(cluster):
    """The store of the cluster."""
    store = await open_url(f"redis+cluster://{cluster.addresses}", patience=2)
    yield store
    await store.aclose()


def some_of(tag, count):
    """So many names with this tag."""
    every = (f"n{number}" for number in itertools.count())
    return list(itertools.islice((name for name in every if partition_of(name) >> 8 == tag), count))


async def test_names_of_a_server_that_died_wait_for_it_and_others_go_on(spread, cluster):
    data = {f"n{number}": noise(100 + number) for number in range(60)}
    await asyncio.gather(*(put(spread, name, body) for name, body in data.items()))
    dead = cluster.servers[1]
    dead.kill()
    gone = set()
    for _ in range(2):  # before and after the others found out
        for name, body in data.items():
            try:
                assert await content(spread, name) == body
                await put(spread, f"{name}-", body)
            except (Unavailable, OutcomeUnknown):
                gone.add(name)
        until(lambda: "fail" in cluster.servers[0].cli("CLUSTER", "NODES"))
    assert 10 < len(gone) < 50
    with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:"):
        await names(spread.list())
    condition = await spread.condition()
    assert not condition.writable
    assert any(dead.address in reason for reason in condition.reasons)
    dead.start()
    until(cluster.sound)
    for name, body in data.items():
        assert await answered(lambda name=name: content(spread, name)) == body
    assert await spread.digests() == await recomputed(spread)


async def test_while_a_slot_moves_reads_and_lists_are_whole_and_writes_wait(spread, cluster):
    tag = 0xA7
    *small, large = some_of(tag, 31)
    data = {name: noise(500, number) for number, name in enumerate(small)}
    for name, body in data.items():
        await put(spread, name, body, stamp=at(1))
    await put(spread, large, noise(3 * PART), stamp=at(1))
    digests = await spread.digests()

    slot = key_slot(b"{%02x}" % tag)
    source = cluster.holder(slot)
    target = next(server for server in cluster.servers if server is not source)
    ids = [server.cli("CLUSTER", "MYID") for server in (source, target)]
    target.cli("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[0])
    source.cli("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[1])

    def move(keys):
        words = ("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS")
        source.cli(*words, *keys)

    async def whole():
        for name, body in data.items():
            assert await content(spread, name) == body
        assert await content(spread, large) == noise(3 * PART)
        assert sorted(await names(spread.list())) == sorted([*data, large])
        assert await spread.digests() == digests

    entry = source.held("*:e*")[0]
    moved = entry.partition(":e")[2][4:]
    # A write needs all that it touches on one server, or is not done at all.
    for keys, name in (
        (source.held("*:p*")[:2], None),
        ([entry], moved),
        (["dolmen:{a7}:"], small[-1]),
    ):
        move(keys)
        await whole()
        if name is not None:
            with pytest.raises(Unavailable, match="during rehashing of slot"):
                await put(spread, name, noise(2 * PART, 1), stamp=at(2))
            with pytest.raises(Unavailable, match="during rehashing of slot"):
                await calls.delete(spread, name, stamp=at(3))
            await whole()
    move(source.held("*{a7}*"))
    for server in (target, source):
        server.cli("CLUSTER", "SETSLOT", str(slot), "NODE", ids[1])
    await whole()
    assert (await put(spread, large, noise(2 * PART, 1), stamp=at(2))).outcome == "created"
    await calls.delete(spread, small[0], stamp=at(2))
    assert await spread.digests() == await recomputed(spread)
    assert source.held("*{a7}*") == []


async def test_a_replica_takes_over_for_a_master_that_died(spread, cluster):
    data = {f"n{number}": noise(1000, number) for number in range(60)}
    master = cluster.servers[2]
    replica = cluster.add_replica(master)
    await asyncio.gather(*(put(spread, name, body) for name, body in data.items()))
    until(lambda: master.info("master_repl_offset") == replica.info("master_repl_offset"))
    master.kill()
    replica.cli("CLUSTER", "FAILOVER", "TAKEOVER")
    for name, body in data.items():
        assert await answered(lambda name=name: content(spread, name)) == body
        deleted = await answered(lambda name=name: calls.delete(spread, name))
        assert deleted.outcome == "created"
    assert await spread.digests() == await recomputed(spread)


async def test_a_planned_failover_loses_nothing_that_was_answered(spread, cluster):
    replica = cluster.add_replica(cluster.servers[0])
    done = []

    async def write(number):
        with contextlib.suppress(Unavailable, OutcomeUnknown):
            await put(spread, f"n{number}", noise(200, number))
            done.append(number)

    for start in range(0, 100_000, 20):
        await asyncio.gather(*(write(number) for number in range(start, start + 20)))
        if start == 60:
            replica.cli("CLUSTER", "FAILOVER")
        if start > 400 and replica.info("role") == "master":
            break
    assert len(done) > 200
    for number in done:
        assert await answered(lambda n=number: content(spread, f"n{n}")) == noise(200, number)
    assert await spread.digests() == await recomputed(spread)


async def test_one_server_that_is_not_durable_is_enough(redis_cluster):
    redis_cluster.servers[1].set("appendonly", "no")
    try:
        store = await open_store(f"redis+cluster://{redis_cluster.servers[0].address}")
        assert not store.capabilities.durable
        [remark] = (await store.condition()).remarks
        assert f"{redis_cluster.servers[1].address} is not durable: appendonly is no" in remark
    finally:
        redis_cluster.servers[1].set("appendonly", "yes")
    await store.condition()
    assert store.capabilities.durable
    await store.aclose()


# The URL


async def test_a_url_of_the_other_kind_is_told(redis_cluster, redis_server):
    with pytest.raises(BadSetting, match=r"is in a cluster, whose URL begins with redis\+cluster"):
        await open_store(f"redis://{redis_cluster.servers[0].address}")
    with pytest.raises(BadSetting, match="is no cluster: mend the URL"):
        await open_store(f"redis+cluster://{redis_server.address}")


@pytest.mark.parametrize(
    "url",
    [
        *("redis:", "redis://", "redis://:hunter2@", "redis://a:b", "redis://a:70000"),
        *("redis://:hun/ter2@a:1", "redis://:hun#ter2@a:1"),
        *("redis://u:hun?ter2@a:1", "redis+cluster://a,", "redis://a,b", "redis+cluster://a/3"),
        *("redis://a/b", "redis://a/99999", "redis://a/1/2", "redis://a?prefix="),
        *("redis://a?prefix={x}", "redis://a?timeout=3", "redis://a#x"),
    ],
)
async def test_a_url_that_is_none_is_explained_without_repeating_a_password(url):
    with pytest.raises(BadSetting, match="write redis://") as caught:
        await open_store(url)
    told = f"{caught.value} {caught.value.__cause__}"
    assert "hun" not in told
    assert "ter2" not in told
    assert "\n" not in told
