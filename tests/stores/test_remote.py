"""The remote store keeps the contract, over a blob server on a volume: the wire loses nothing."""

from dolmen.http import start_server
from dolmen.servers.blob import BlobServer
from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.volume import open_volume
from dolmen.testing.conformance import Conformance, Place


class TestRemote(Conformance):
    async def make_store(self, place: Place) -> BlobStore:
        await place.exits.aclose()  # the server before this one, when it is made again
        volume = await open_volume(
            str(place.path), clock=Clock(place.time.wall), now=place.time.now
        )
        place.exits.push_async_callback(volume.aclose)
        server = await start_server(BlobServer(volume, describes="volume:test").handle)
        place.exits.push_async_callback(server.close)
        return await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
