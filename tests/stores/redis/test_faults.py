"""A Redis server that is killed, paused, full, closed to the store, or set otherwise."""

import asyncio
import contextlib
import random
import subprocess
import sys

import pytest
from dolmen.stores.redis.layout import PART
from dolmen.stores.redis.store import open_redis

from dolmen.errors import (
    BadSetting,
    Conflict,
    DolmenError,
    Full,
    NotFound,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.payload import Bytes, Stream
from dolmen.stores import open_store
from dolmen.testing.conformance.material import at, content, names, noise, recomputed
from engines.redis import RedisServer, eventually, free_port, until


@pytest.fixture
async def store(server):
    store = await open_store(f"redis://{server.address}")
    yield store
    await store.aclose()


@pytest.fixture
async def hasty(server):
    """A store that does not wait for long."""
    store = await open_redis(f"redis://{server.address}", patience=0.5)
    yield store
    server.go_on()
    await store.aclose()


async def noticed(store):
    """Until the store knows that its connection ended."""
    with contextlib.suppress(Unavailable):
        await store.notes()


# Killed, paused, not there


async def test_killed_in_the_middle_of_a_put_it_shows_nothing_of_it(store, server):
    async def pieces():
        for number in range(8):
            if number == 5:
                server.kill()
                server.start()
            yield noise(PART, number)

    await store.put("before", Bytes(noise(2 * PART)))
    with pytest.raises((Unavailable, OutcomeUnknown), match="Redis at 127"):
        await store.put("name", Stream(8 * PART, pieces))
    with pytest.raises(NotFound):
        await store.get("name")
    assert await names(store.list()) == ["before"]
    assert await content(store, "before") == noise(2 * PART)
    assert (await store.put("name", Bytes(noise(8 * PART)))).outcome == "created"
    assert await content(store, "name") == noise(8 * PART)


async def test_killed_amid_writes_it_holds_all_that_was_answered(store, server):
    rng = random.Random(1)
    answered, unsure, told = {}, set(), []

    async def write(number):
        name = f"n{number % 40}"
        data = noise(rng.choice((0, 100, 5_000, 100_000)), number)
        try:
            if rng.random() < 0.2:
                put = await store.delete(name)
                answered[name] = max(answered.get(name, (0, None)), (put.stamp, None))
            else:
                put = await store.put(name, Bytes(data), stamp=at(number))
                if put.outcome != "superseded":
                    answered[name] = max(answered.get(name, (0, None)), (put.stamp, data))
        except OutcomeUnknown:
            unsure.add(name)
        except (Unavailable, Conflict) as error:
            told.append(error)

    async def kill():
        await eventually(lambda: len(answered) >= 20)
        server.kill()

    await asyncio.gather(kill(), *(write(number) for number in range(600)))
    assert unsure or told
    server.start()
    for name, (stamp, data) in answered.items():
        info = await store.stat(name, tombstones=True)
        if name not in unsure:
            assert info.stamp == stamp
            if data is not None:
                assert await content(store, name) == data
        assert info.stamp >= stamp
    assert await store.digests() == await recomputed(store)


async def test_one_that_does_not_answer_is_given_up_and_asked_again(hasty, server):
    await hasty.put("name", Bytes(b"x"))
    server.pause()
    with pytest.raises(Unavailable, match=r"no answer within 0\.5 seconds"):
        await hasty.get("name")
    with pytest.raises(OutcomeUnknown, match="lost before it answered"):
        await hasty.put("name", Bytes(b"y"), stamp=at(1))
    for ask in (hasty.get("name"), hasty.put("name", Bytes(b"y"), stamp=at(1))):
        with pytest.raises(Unavailable, match="can't be asked"):  # so the put was not sent
            await ask
    server.go_on()
    assert await content(hasty, "name") == b"x"
    assert (await hasty.put("other", Bytes(b"y"))).outcome == "created"
    assert await hasty.digests() == await recomputed(hasty)


async def test_a_large_blob_slower_than_the_patience_is_read_and_written(hasty):
    """What counts is silence, not how long all of it takes."""

    async def slow():
        for number in range(4):
            await asyncio.sleep(0.2)
            yield noise(PART, number)

    await hasty.put("name", Stream(4 * PART, slow))
    got = b""
    async for piece in (await hasty.get("name")).payload:
        await asyncio.sleep(0.2)
        got += piece
    assert got == b"".join(noise(PART, number) for number in range(4))


async def test_nobody_listening_is_unavailable_until_somebody_does(tmp_path):
    server = RedisServer(tmp_path / "redis")
    store = await open_store(f"redis://{server.address}")
    for ask in (store.get("a"), store.put("a", Bytes(b"a")), store.condition(), store.digests()):
        with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:\d+ can't be asked"):
            await ask
    with server:
        await store.put("a", Bytes(b"a"))
        assert not store.capabilities.durable  # known before the answer
        assert await content(store, "a") == b"a"
    with pytest.raises(Unavailable):
        await store.get("a")
    await store.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await store.get("a")


async def test_while_it_loads_it_is_unavailable(store, server):
    await asyncio.gather(*(store.put(f"n{number}", Bytes(b"x")) for number in range(300)))
    server.cli("BGREWRITEAOF")
    until(lambda: server.info("aof_rewrite_in_progress") == "0")
    server.kill()
    slowly = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    server.start(*slowly, loaded=False)
    await noticed(store)
    with pytest.raises(Unavailable, match="LOADING"):
        await store.get("n1")
    with pytest.raises(Unavailable):
        await store.put("n1", Bytes(b"y"))
    server.kill()
    server.start()
    await noticed(store)
    assert await content(store, "n1") == b"x"


# Full


async def test_a_full_one_says_so_and_has_no_half_blob(store, server):
    await store.put("old", Bytes(noise(100_000)), stamp=at(1))
    server.set("maxmemory", str(int(server.info("used_memory")) + 6 * PART))
    with pytest.raises(Full, match="maxmemory"):
        await store.put("large", Bytes(noise(20 * PART)))
    await eventually(lambda: len(server.held("*:p:*")) == 1)  # of "old"
    put = []

    async def fill():
        while True:
            await store.put(f"n{len(put)}", Bytes(noise(60_000, len(put))))
            put.append(f"n{len(put)}")

    with pytest.raises(Full):
        await fill()
    assert len(put) > 20
    for number, name in enumerate(put):
        assert await content(store, name) == noise(60_000, number)
    for name in ("large", f"n{len(put)}"):
        with pytest.raises(NotFound):
            await store.get(name)
    server.set("maxmemory", str(int(server.info("used_memory")) // 2))  # what is used varies
    condition = await store.condition()
    assert not condition.writable
    assert "is full" in condition.reasons[0]
    assert condition.free == 0
    # What frees or hardly takes memory goes on.
    info = await store.stat("n0")
    await store.touch("n0", stamp=info.stamp + 1, checksum=info.checksum, meta=b"")
    await store.delete("old", stamp=at(2))
    assert await store.remove("n1", if_stamp=(await store.stat("n1")).stamp)
    assert await store.digests() == await recomputed(store)
    server.set("maxmemory", "0")
    await store.put("large", Bytes(noise(20 * PART)))
    assert (await store.condition()).writable


async def test_one_that_evicts_is_not_durable_and_never_gives_half_a_blob(store, server):
    server.set("maxmemory-policy", "allkeys-random")
    server.set("maxmemory", str(int(server.info("used_memory")) + 10 * PART))
    sizes = [random.Random(seed).choice((100, 60_000, 2 * PART)) for seed in range(60)]
    for number, size in enumerate(sizes):
        try:
            await store.put(f"n{number}", Bytes(noise(size, number)))
        except Unavailable as error:
            assert "evicted" in str(error)  # noqa: PT017
    lost = 0
    for number, size in enumerate(sizes):
        try:
            assert await content(store, f"n{number}") == noise(size, number)
        except DolmenError:
            lost += 1
    assert 0 < lost < len(sizes)
    assert len([info async for info in store.list()]) < len(sizes)
    assert (await store.digests()).count <= len(sizes)
    condition = await store.condition()
    assert not store.capabilities.durable
    assert "maxmemory-policy is allkeys-random, not noeviction" in condition.remarks[0]


# Closed to it


async def test_a_wrong_password_or_database_is_told_when_it_is_opened(tmp_path):
    with RedisServer(tmp_path / "redis", "--requirepass", "p@ss/w:rd#?%") as server:
        as_admin = ("--no-auth-warning", "-a", "p@ss/w:rd#?%")
        server.cli(*as_admin, "ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all")
        right = "p%40ss%2Fw%3Ard%23%3F%25"
        for login in (f":{right}@", f"default:{right}@", "me:pw@"):
            store = await open_store(f"redis://{login}{server.address}/15")
            await store.put("a", Bytes(b"a"), stamp=at(1))
            await store.aclose()
        for login in ("", ":hunter2@", "me:hunter2@", "nobody:hunter2@", "hunter2@"):
            with pytest.raises(BadSetting, match="user") as caught:
                await open_store(f"redis://{login}{server.address}")
            assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"
        with pytest.raises(BadSetting, match="no such database: mend the number"):
            await open_store(f"redis://me:pw@{server.address}/16")


async def test_a_password_changed_meanwhile_is_told_until_it_is_right_again(store, server):
    await store.put("a", Bytes(b"a"))
    server.kill()
    server.start("--requirepass", "other")
    await noticed(store)
    for ask in (store.get("a"), store.put("b", Bytes(b"b"))):
        with pytest.raises(Unavailable, match="mend the user"):
            await ask
    server.kill()
    server.start()
    await noticed(store)
    assert await content(store, "a") == b"a"


async def test_a_server_that_does_not_know_auth_does_not_make_us_tell_the_password(tmp_path):
    with (
        RedisServer(tmp_path / "redis", "--rename-command", "AUTH", "") as server,
        pytest.raises(BadSetting, match="refuses the user or password") as caught,
    ):
        await open_store(f"redis://:hunter2@{server.address}")
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"


async def test_a_replica_reads_and_takes_no_writes_until_it_is_the_master(store, server):
    await store.put("a", Bytes(b"a"))
    server.cli("REPLICAOF", "127.0.0.1", str(free_port()))
    for ask in (store.put("b", Bytes(b"b")), store.put("c", Bytes(noise(PART))), store.delete("a")):
        with pytest.raises(ReadOnly, match="READONLY"):
            await ask
    assert await content(store, "a") == b"a"
    condition = await store.condition()
    assert not condition.writable
    assert "is a replica" in condition.reasons[0]
    server.cli("REPLICAOF", "NO", "ONE")
    await store.put("b", Bytes(b"b"))
    assert sorted(await names(store.list())) == ["a", "b"]


async def test_something_that_is_no_redis_is_unavailable():
    async def answer(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    store = await open_store(f"redis://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="does not speak the protocol of Redis"):
        await store.get("a")
    await store.aclose()
    other.close()
    await other.wait_closed()


# Set otherwise


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--appendonly", "no"), "appendonly is no, not yes"),
        (("--appendonly", "yes"), "appendfsync is everysec, not always"),
        (
            (
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--maxmemory-policy",
                "volatile-ttl",
            ),
            "maxmemory-policy is volatile-ttl, not noeviction",
        ),
        (("--rename-command", "CONFIG", ""), "appendonly is not told, not yes"),
    ],
)
async def test_settings_that_would_lose_writes_are_not_durable_and_told(tmp_path, options, why):
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
    server.set("appendfsync", "no")
    await store.condition()
    assert not store.capabilities.durable
    server.set("appendfsync", "always")
    await store.condition()
    assert store.capabilities.durable
    server.kill()
    server.start("--appendonly", "no")
    await noticed(store)
    await store.put("a", Bytes(b"a"))
    assert not store.capabilities.durable


# TLS, IPv6, the driver


@pytest.fixture
def tls(tmp_path):
    """A server that speaks TLS only, with a certificate of its own making."""
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
    with RedisServer(tmp_path / "redis", *options) as server:
        yield server, f"rediss://127.0.0.1:{port}", certificate


async def test_over_tls_it_works_where_the_certificate_is_trusted(tls, monkeypatch):
    server, url, certificate = tls
    with pytest.raises(BadSetting, match="certificate that is not trusted here"):
        await open_store(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    store = await open_store(url)
    await store.put("large", Bytes(noise(5 * PART + 1)))
    assert await content(store, "large") == noise(5 * PART + 1)
    await asyncio.gather(*(store.put(f"n{number}", Bytes(b"x")) for number in range(200)))
    assert (await store.digests()).count == 201
    await store.aclose()
    plain = await open_redis(f"rediss://{server.address}", patience=0.5)
    with pytest.raises(Unavailable, match=r"Redis at 127.*can't be asked"):
        await plain.get("large")
    await plain.aclose()


async def test_an_address_of_ipv6(tmp_path):
    with RedisServer(tmp_path / "redis", "--bind", "127.0.0.1 ::1") as server:
        store = await open_store(f"redis://[::1]:{server.port}")
        await store.put("a", Bytes(b"a"))
        [remark] = (await store.condition()).remarks
        assert remark.startswith(f"Redis at [::1]:{server.port} ")
        await store.aclose()


async def test_without_its_driver_the_line_to_type_is_told(monkeypatch):
    for module in [each for each in sys.modules if each.startswith("dolmen.stores.redis.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(BadSetting, match=r"needs hiredis.*pip install 'dolmen\[redis\]'"):
        await open_store("redis://127.0.0.1:1")
