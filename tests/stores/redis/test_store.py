"""The Redis store keeps the contract, on one server and on a cluster of three."""

import hashlib

import pytest
from engines.redis import RedisCluster, RedisServer

from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.redis.store import open_redis
from dolmen.testing.conformance import Conformance, Place


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


async def test_what_it_promises(redis_server: RedisServer) -> None:
    store = await open_redis(f"redis://{redis_server.address}")
    assert store.capabilities == Capabilities(
        durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
    )
    await store.aclose()
