"""The suite against two S3 servers, Azure's emulator, and what stands in for Google."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import ClassVar

import pytest

from dolmen.stamps import Clock
from dolmen.store import Capabilities
from dolmen.stores.bucket import BucketStore
from dolmen.testing.conformance import Conformance, Place
from engines.azurite import Azurite
from engines.buckets import opened
from engines.google import Google
from engines.moto import Moto
from engines.rclone import Rclone
from engines.served import Served


class Buckets(Conformance):
    """One server, a path in its bucket for each test."""

    server: ClassVar[type[Moto | Azurite | Rclone]]
    takes_time = False  # ages are the bucket's own: `test_bucket_faults` lets time pass

    @pytest.fixture(scope="class")
    def running(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        with self.server(tmp_path_factory.mktemp("server")) as server:
            yield server

    @pytest.fixture(autouse=True)
    def serve(self, running: Moto | Azurite | Rclone) -> None:
        self.running = running

    async def make_store(self, place: Place) -> BucketStore:
        path = hashlib.sha256(str(place.path).encode()).hexdigest()
        return opened(self.running.url(f"tests/{path}"), clock=Clock(place.time.wall))


class TestMoto(Buckets):
    server = Moto


class TestGoogle(Buckets):
    server = Google


class TestAzurite(Buckets):
    server = Azurite


class TestRclone(Buckets):
    server = Rclone


def test_what_it_promises() -> None:
    assert BucketStore.capabilities == Capabilities(
        durable=True, largest=1 << 40, digests=False, ordered=True, conflicts=False
    )
