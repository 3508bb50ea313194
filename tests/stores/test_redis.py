"""Redis as a store, on one server and on a cluster of three."""

import hashlib

import pytest

from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores.redis import open_url
from dolmen.testing.conformance import Conformance, Place
from engines.redis import DURABLE, RedisCluster, RedisServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis"), *DURABLE) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory):
    with RedisCluster(tmp_path_factory.mktemp("redis"), *DURABLE) as cluster:
        yield cluster


async def opened(url: str, place: Place) -> BlobStore:
    """The store of a place, under a prefix of its own."""
    prefix = hashlib.sha1(str(place.path).encode()).hexdigest()
    clock = Clock(place.time.wall)
    return await open_url(f"{url}?prefix={prefix}", clock=clock, now=place.time.now)


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
