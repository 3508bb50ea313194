"""The volume keeps the contract."""

from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.volume import Volume, open_volume
from dolmen.testing.conformance import Conformance, Place
from stores.volume.conftest import flip, place_of


class TestVolume(Conformance):
    model_examples = 200

    async def make_store(self, place: Place) -> BlobStore:
        return await open_volume(
            str(place.path),
            clock=Clock(place.time.wall),
            now=place.time.now,
            segment_size=1 << 20,
        )

    async def damage(self, store: BlobStore, place: Place, name: str) -> None:
        assert isinstance(store, Volume)
        path, at = place_of(store, name)
        flip(path, at + (await store.stat(name)).size // 2)


def test_what_it_promises() -> None:
    assert Volume.capabilities == Capabilities(
        durable=True, largest=1 << 44, digests=True, ordered=True, conflicts=True
    )
