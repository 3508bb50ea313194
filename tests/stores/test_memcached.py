"""memcached as a store."""

import hashlib

import pytest

from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores.memcached import open_url
from dolmen.testing.conformance import Conformance, Place
from engines.memcached import Memcached


@pytest.fixture(scope="session")
def memcached():
    server = Memcached("-m", "1024")
    yield server
    server.kill()


class TestOneServer(Conformance):
    @pytest.fixture(autouse=True)
    def _server(self, memcached: Memcached) -> None:
        self.server = memcached

    async def make_store(self, place: Place) -> BlobStore:
        url = self.server.url(hashlib.sha256(str(place.path).encode()).hexdigest()[:16])
        return await open_url(url, clock=Clock(place.time.wall), now=place.time.now)
