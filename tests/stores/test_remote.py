"""The remote store keeps the contract, over a blob server on a volume: the wire loses nothing."""

import contextlib

from dolmen.http import start_server
from dolmen.http.messages import Request, Response
from dolmen.payload import Bytes
from dolmen.servers.blob import BlobServer
from dolmen.stamps import Clock
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
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


async def test_digests_that_did_not_change_are_not_sent_again() -> None:
    memory, statuses = MemoryStore(), []
    honest = BlobServer(memory, describes="memory:").handle

    async def watched(request: Request) -> Response:
        response = await honest(request)
        statuses.append((request.raw_path, response.status))
        return response

    async with contextlib.AsyncExitStack() as leaving:
        server = await start_server(watched)
        leaving.push_async_callback(server.close)
        store = await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
        leaving.push_async_callback(store.aclose)
        statuses.clear()
        for number in range(2):
            await memory.put(f"n{number}", Bytes(b"x"))
            for _ in range(2):
                assert await store.digests() == await memory.digests()
    assert statuses == [(b"/digests", status) for status in (200, 304, 200, 304)]
