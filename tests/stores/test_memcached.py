"""memcached as a store: forgetting, full, ended, silent."""

import asyncio
import contextlib
import hashlib
import os
import random

import pytest

from dolmen.errors import BadSetting, Corrupt, Full, NotFound
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores import open_store
from dolmen.stores.memcached import open_url
from dolmen.testing.conformance import Place
from dolmen.testing.conformance.material import content, names
from engines.memcached import Memcached
from stores.keyed_suite import Faults, Keyed, put


@pytest.fixture(scope="session")
def memcached():
    server = Memcached("-m", "1024")
    yield server
    server.kill()


class TestOneServer(Keyed):
    @pytest.fixture(autouse=True)
    def _server(self, memcached: Memcached) -> None:
        self.server = memcached

    async def make_store(self, place: Place) -> BlobStore:
        url = self.server.url(hashlib.sha256(str(place.path).encode()).hexdigest()[:16])
        return await open_url(url, clock=Clock(place.time.wall), now=place.time.now)


@pytest.fixture
def server(request):
    """One for a test that does things to it; options by `parametrize(..., indirect=True)`."""
    server = Memcached(*getattr(request, "param", ()))
    yield server
    server.go_on()
    server.kill()


@pytest.fixture
async def store(server):
    """A store that does not wait for long."""
    store = await open_url(server.url(), patience=1)
    yield store
    await store.aclose()


async def test_what_it_promises(store):
    assert store.capabilities == Capabilities(
        durable=False, largest=1 << 30, digests=False, ordered=False, conflicts=True
    )
    assert (await store.condition()).remarks == ["memcached is not durable: a restart empties it"]


@pytest.mark.parametrize("server", [("-m", "64")], indirect=True)
async def test_what_it_drops_for_want_of_memory_is_not_there_and_never_half(store):
    rng = random.Random(1)
    sizes = [rng.choice((100, 400_000, 1_500_000, 12_000_000)) for _ in range(40)]
    data = {f"n{number}": rng.randbytes(size) for number, size in enumerate(sizes)}
    for name, body in data.items():
        await put(store, name, body)
    identity = (await store.notes())["identity"]
    there = 0
    for name, body in data.items():
        with contextlib.suppress(NotFound, Corrupt):
            assert await content(store, name) == body
            there += 1
    assert 0 < there < len(data)
    assert set(await names(store.list())) <= set(data)
    assert "dropped" in (await store.condition()).remarks[1]
    await put(store, "again", b"x" * 3_000_000)
    assert await content(store, "again") == b"x" * 3_000_000
    assert (await store.notes())["identity"] == identity


@pytest.mark.parametrize("server", [("-m", "64", "-M")], indirect=True)
async def test_one_that_may_not_drop_says_that_it_is_full(store):
    kept = []

    async def fill():
        for number in range(200):
            await put(store, f"n{number}", os.urandom(700_000))
            kept.append(f"n{number}")

    with pytest.raises(Full, match="no memory left"):
        await fill()
    assert len(kept) > 20
    for name in kept:
        assert len(await content(store, name)) == 700_000
    with pytest.raises(NotFound):
        await store.get(f"n{len(kept)}")


class TestFaults(Faults):
    forgets = True


async def test_many_at_once_share_a_connection(store):
    many = [f"n{number}" for number in range(500)]
    await asyncio.gather(*(put(store, name, name.encode()) for name in many))
    found = await asyncio.gather(*(content(store, name) for name in many))
    assert found == [name.encode() for name in many]
    lines = await store._driver._server.lines(b"stats\r\n")
    connections = next(line for line in lines if b" total_connections " in line)
    assert int(connections.split()[2]) <= 8


@pytest.mark.parametrize(
    "url",
    ["memcached:", "memcached://", "memcached://a:b", "memcached://a:1,b:1", "memcached://a/b/c"],
)
async def test_a_url_that_is_none_is_explained(url):
    with pytest.raises(BadSetting, match="write memcached://HOST:PORT"):
        await open_store(url)
