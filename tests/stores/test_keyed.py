"""The blob store above a key-value store, on the smallest driver there is: SQLite."""

from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores.keyed import open_keyed
from dolmen.testing.conformance import Conformance, Place
from stores.sqlite import SqliteDriver


class TestSqlite(Conformance):
    async def make_store(self, place: Place) -> BlobStore:
        driver = SqliteDriver(place.path.with_suffix(".db"))
        return await open_keyed(driver, clock=Clock(place.time.wall), now=place.time.now)
