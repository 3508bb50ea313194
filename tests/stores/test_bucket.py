"""The suite against two S3 servers, Azure's emulator, and what stands in for Google."""

from __future__ import annotations

import hashlib
from typing import ClassVar, cast

import pytest

from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.bucket import BucketStore
from dolmen.stores.bucket_layout import part_path
from dolmen.testing.conformance import Conformance, Place
from engines.buckets import opened


class Buckets(Conformance):
    """One server, a path in its bucket for each test."""

    model_examples = 2  # every call is some requests of a slow server

    server: ClassVar[str]
    takes_time = False  # ages are the bucket's own: `test_bucket_faults` lets time pass

    @pytest.fixture(autouse=True)
    def serve(self, request: pytest.FixtureRequest) -> None:
        self.running = request.getfixturevalue(self.server)

    async def make_store(self, place: Place) -> BucketStore:
        path = hashlib.sha256(str(place.path).encode()).hexdigest()
        return opened(self.running.url(f"tests/{path}"), clock=Clock(place.time.wall))

    async def damage(self, store: BlobStore, place: Place, name: str) -> None:
        """Flip the last bit of its head, or of the data of its first part."""
        bucket = cast("BucketStore", store)
        head = (await bucket._look(name))[-1]
        path = head.path if head.inside else part_path(name, head.id, 0)
        body = bytearray(await bucket._client.get(path) or b"")
        body[-1 if head.inside else -5] ^= 1
        await bucket._client.put(path, bytes(body))


class Emulated(Buckets):
    """By a program that takes a second for some dozen requests: rclone has those of thousands."""

    test_many_small_blobs_go_through_in_order = None
    test_what_is_there_throughout_is_listed_once_whatever_else_is_written = None
    test_many_are_removed_in_the_order_asked = None


class TestMoto(Emulated):
    server = "moto"


class TestGoogle(Emulated):
    server = "google"


class TestAzurite(Emulated):
    server = "azurite"


class TestRclone(Buckets):
    server = "rclone"


def test_what_it_promises() -> None:
    assert BucketStore.capabilities == Capabilities(
        durable=True, largest=1 << 40, digests=False, ordered=True, conflicts=False
    )
