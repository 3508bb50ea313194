"""PostgreSQL as a store."""

import hashlib

import pytest

from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores.postgresql import open_url
from dolmen.testing.conformance import Conformance, Place
from engines.postgresql import PostgresServer


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    with PostgresServer(tmp_path_factory.mktemp("postgresql") / "data") as server:
        yield server


class TestPostgres(Conformance):
    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: PostgresServer) -> None:
        self.server = postgres_server

    async def make_store(self, place: Place) -> BlobStore:
        schema = "s" + hashlib.sha1(str(place.path).encode()).hexdigest()
        url = self.server.schema(schema)
        if not place.path.exists():
            place.path.mkdir(parents=True)
            place.exits.callback(self.server.drop, schema)
        return await open_url(url, clock=Clock(place.time.wall), now=place.time.now)
