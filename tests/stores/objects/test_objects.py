"""The suite against two S3 servers, Azure's emulator, and a folder."""

import hashlib
from typing import ClassVar

import pytest

from dolmen.stores.objects import ObjectsStore
from dolmen.testing.conformance import Conformance, Place
from engines.buckets import opened


class TestFolder(Conformance):
    async def make_store(self, place: Place) -> ObjectsStore:
        return opened(f"file://{place.path}", place.time)


class Served(Conformance):
    """One server, a path in its bucket for each test."""

    server: ClassVar[str]

    @pytest.fixture(autouse=True)
    def serve(self, request: pytest.FixtureRequest) -> None:
        self.running = request.getfixturevalue(self.server)

    async def make_store(self, place: Place) -> ObjectsStore:
        path = hashlib.sha256(str(place.path).encode()).hexdigest()
        return opened(self.running.url(f"tests/{path}"), place.time)


class TestRclone(Served):
    server = "rclone"


class TestMoto(Served):
    server = "moto"


class TestAzurite(Served):
    server = "azurite"
