from dolmen.stamps import Clock
from dolmen.stores.objects import ObjectsStore
from dolmen.stores.objects.url import open_bucket
from dolmen.testing.conformance import Conformance, Place


class TestFolder(Conformance):
    async def make_store(self, place: Place) -> ObjectsStore:
        bucket, folder = open_bucket(f"file://{place.path}")
        return ObjectsStore(bucket, folder=folder, clock=Clock(place.time.wall), now=place.time.now)
