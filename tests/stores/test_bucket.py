"""The suite against two S3 servers, Azure's emulator, and what stands in for Google."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import pytest

from dolmen.stamps import Clock
from dolmen.store import Capabilities
from dolmen.stores.bucket import BucketStore
from dolmen.testing.conformance import Conformance, Place
from engines.buckets import opened


class Buckets(Conformance):
    """One server, a path in its bucket for each test."""

    model_examples = 3  # every call is some requests of a slow server

    server: ClassVar[str]
    takes_time = False  # ages are the bucket's own: `test_bucket_faults` lets time pass

    @pytest.fixture(autouse=True)
    def serve(self, request: pytest.FixtureRequest) -> None:
        self.running = request.getfixturevalue(self.server)

    async def make_store(self, place: Place) -> BucketStore:
        path = hashlib.sha256(str(place.path).encode()).hexdigest()
        return opened(self.running.url(f"tests/{path}"), clock=Clock(place.time.wall))


class TestMoto(Buckets):
    server = "moto"


class TestGoogle(Buckets):
    server = "google"


class TestAzurite(Buckets):
    server = "azurite"


class TestRclone(Buckets):
    server = "rclone"


def test_what_it_promises() -> None:
    assert BucketStore.capabilities == Capabilities(
        durable=True, largest=1 << 40, digests=False, ordered=True, conflicts=False
    )
