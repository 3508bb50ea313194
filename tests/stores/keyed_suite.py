"""The one suite for stores above a driver, which are all damaged alike."""

from typing import cast

from dolmen.names import partition_of
from dolmen.record import NOBODY
from dolmen.store import BlobStore
from dolmen.stores.keyed import KeyedStore
from dolmen.stores.keyed_layout import decode, entry_key, part_key
from dolmen.testing.conformance import Conformance, Place


class Keyed(Conformance):
    async def damage(self, store: BlobStore, place: Place, name: str) -> None:
        """Flip the last bit of its entry, or of its first part."""
        driver, partition = cast("KeyedStore", store)._driver, partition_of(name)
        key = entry_key(partition, name)
        [value] = await driver.get([key])
        assert value is not None
        upload = decode(key, value).upload
        if upload != NOBODY:
            key = part_key(partition, upload, 0)
            [value] = await driver.get([key])
            assert value is not None
        await driver.set(key, value[:-1] + bytes([value[-1] ^ 1]))
