"""The PostgreSQL store keeps the contract."""

import hashlib

import pytest

from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.postgresql.store import open_url
from dolmen.testing.conformance import Conformance, Place
from engines.postgresql import PostgresServer


class TestPostgres(Conformance):
    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: PostgresServer) -> None:
        self.server = postgres_server

    async def make_store(self, place: Place) -> BlobStore:
        url = self.server.schema("s" + hashlib.sha1(str(place.path).encode()).hexdigest())
        return await open_url(url, clock=Clock(place.time.wall), now=place.time.now)
