"""The volume keeps the contract."""

from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.volume import VolumeStore, open_volume
from dolmen.testing.conformance import Conformance, Place


class TestVolume(Conformance):
    model_examples = 200

    async def make_store(self, place: Place) -> BlobStore:
        return await open_volume(
            str(place.path),
            clock=Clock(place.time.wall),
            now=place.time.now,
            segment_size=1 << 20,
        )


def test_what_it_promises() -> None:
    assert VolumeStore.capabilities == Capabilities(
        durable=True, largest=1 << 44, digests=True, ordered=True, conflicts=True
    )
