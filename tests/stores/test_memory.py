from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.memory import MemoryStore
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.faulty import damage


class TestMemory(Conformance):
    reopens = False

    async def make_store(self, place: Place) -> BlobStore:
        return MemoryStore(clock=Clock(place.time.wall), now=place.time.now)

    async def damage(self, store: BlobStore, place: Place, name: str) -> None:
        assert isinstance(store, MemoryStore)
        damage(store, name)


def test_what_it_promises() -> None:
    assert MemoryStore.capabilities == Capabilities(
        durable=False, largest=1 << 31, digests=True, ordered=False, conflicts=True
    )
