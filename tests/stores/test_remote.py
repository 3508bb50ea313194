"""The remote store keeps the contract, over a blob server: the wire loses nothing."""

import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from dolmen.errors import Corrupt, NotFound, Unavailable
from dolmen.http import Handler, start_server
from dolmen.http.messages import Request, Response
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.servers.blob import BlobServer
from dolmen.stamps import Clock
from dolmen.store import BlobStore, Failed, Write
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
from dolmen.stores.volume import open_volume
from dolmen.testing import calls
from dolmen.testing.conformance import Conformance, Place


class TestRemote(Conformance):
    kept: ClassVar[dict[Path, MemoryStore]] = {}
    """What the servers are fronts of, by the place of each test."""

    async def make_store(self, place: Place) -> BlobStore:
        await place.exits.aclose()  # the server before this one, when it is made again
        memory = self.kept.setdefault(
            place.path, MemoryStore(clock=Clock(place.time.wall), now=place.time.now)
        )
        server = await start_server(blob_server(memory))
        place.exits.push_async_callback(server.close)
        return await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")


class Far:
    """A blob server whose answers come from `handle`, which a test changes, and a remote store."""

    def __init__(self) -> None:
        self.handle: Handler = away

    def answer(self, request: Request) -> Response | Awaitable[Response]:
        return self.handle(request)


async def away(_request: Request) -> Response:
    return Response(503, [], b"")


async def plain(request: Request) -> Response:
    if request.raw_path.startswith(b"/blob/"):
        return Response(201, [], b"stored")
    return Response(404, [], b"")


def blob_server(store: BlobStore) -> Handler:
    return BlobServer(store, describes="a store").handle


@pytest.fixture
async def far() -> AsyncIterator[tuple[Far, BlobStore]]:
    far = Far()
    async with contextlib.AsyncExitStack() as leaving:
        server = await start_server(far.answer)
        leaving.push_async_callback(server.close)
        store = await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
        leaving.push_async_callback(store.aclose)
        yield far, store


async def test_a_touch_that_fails_keeps_nothing_that_its_caller_holds(far):
    server, store = far
    server.handle = blob_server(MemoryStore())

    class Chunk:
        pass

    async def touch() -> weakref.ref[Chunk]:
        chunk = Chunk()
        with pytest.raises(NotFound):
            await store.write(Write("name", kind=Kind.TOUCH, stamp=1 << 40, checksum=bytes(16)))
        return weakref.ref(chunk)

    gc.disable()
    try:
        assert (await touch())() is None
    finally:
        gc.enable()


async def test_a_server_that_could_not_be_asked_what_it_is_is_asked_before_anything_else(far):
    server, store = far
    for _ in range(2):
        with pytest.raises(Unavailable):
            await calls.put(store, "a", Bytes(b"a"))
    memory = MemoryStore()
    server.handle = blob_server(memory)
    await calls.put(store, "a", Bytes(b"a"))
    assert store.capabilities == memory.capabilities
    assert not store.capabilities.durable


async def test_a_plain_server_that_could_not_be_asked_is_recognized_later(far):
    server, store = far
    server.handle = plain
    with pytest.raises(Unavailable, match="plain sos"):
        await calls.put(store, "a", Bytes(b"a"), stamp=7)
    assert (await calls.put(store, "a", Bytes(b"a"), stamp=7)).stamp == 0
    assert not store.capabilities.stamps


@pytest.mark.parametrize("write", ["put", "delete"])
async def test_every_write_tells_anew_whether_it_is_durable(far, write):
    server, store = far
    memory = MemoryStore()
    server.handle = blob_server(memory)
    for durable in (True, False, True):
        memory.capabilities = replace(memory.capabilities, durable=durable)
        await (calls.put(store, "a", Bytes(b"a")) if write == "put" else calls.delete(store, "a"))
        assert store.capabilities.durable is durable


async def test_digests_that_did_not_change_are_not_sent_again(far) -> None:
    server, store = far
    memory, statuses = MemoryStore(), []
    honest = blob_server(memory)

    async def watched(request: Request) -> Response:
        response = await honest(request)
        statuses.append((request.raw_path, response.status))
        return response

    server.handle = watched
    for number in range(2):
        await calls.put(memory, f"n{number}", Bytes(b"x"))
        for _ in range(2):
            assert await store.digests() == await memory.digests()
    assert statuses[1:] == [(b"/digests", status) for status in (200, 304, 200, 304)]


async def test_a_damaged_copy_is_told_from_a_server_that_can_not_be_asked(far, tmp_path) -> None:
    server, store = far
    volume = await open_volume(str(tmp_path))
    server.handle = blob_server(volume)
    await calls.put(store, "damaged", Bytes(b"x" * 1_000))
    (segment,) = tmp_path.rglob("*.seg")
    segment.write_bytes(segment.read_bytes().replace(b"x" * 1_000, b"y" * 1_000))
    assert [type(each) async for each in store.verify_many(["damaged"])] == [Failed]
    for read in (store.stat, store.get):  # to HEAD the answer has no body that could say so
        with pytest.raises(Corrupt):
            await read("damaged")
    await volume.aclose()


async def test_a_blob_that_breaks_off_fails_and_those_behind_it_are_read(far) -> None:
    server, store = far
    memory = MemoryStore()
    for name in "abc":
        await calls.put(memory, name, Bytes(name.encode() * 100_000))
    honest = blob_server(memory)

    async def cutting(request: Request) -> Response:
        response = await honest(request)
        if request.raw_path != b"/records/read":
            return response
        stream = b"".join([bytes(piece) async for piece in response.body])
        return Response(200, response.headers, stream[:150_000])

    server.handle = cutting
    answers = [answer async for answer in store.get_many(["a", "b", "c", "absent"])]
    failed = [answer.name for answer in answers if isinstance(answer, Failed)]
    assert (len(answers), failed) == (4, ["b", "absent"])
