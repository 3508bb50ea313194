from dolmen.stamps import Clock
from dolmen.store import BlobStore, Capabilities
from dolmen.stores.memory import MemoryStore
from dolmen.testing.conformance import Conformance, Place


class TestMemory(Conformance):
    reopens = False

    async def make_store(self, place: Place) -> BlobStore:
        return MemoryStore(clock=Clock(place.time.wall), now=place.time.now)


def test_what_it_promises() -> None:
    assert MemoryStore.capabilities == Capabilities(
        durable=False, largest=1 << 31, digests=True, ordered=False, conflicts=True
    )
