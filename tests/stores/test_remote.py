"""The remote store keeps the contract, over a blob server: the wire loses nothing."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from dolmen.errors import BadContent, Corrupt, NotFound, Unavailable
from dolmen.http import Handler, Streamed, start_server
from dolmen.http.messages import Request, Response
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.servers.blob import BlobServer
from dolmen.stamps import Clock
from dolmen.store import Blob, BlobStore, Failed, Outcome, Put, Write
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
from dolmen.stores.records import frame
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


class Watched:
    """A blob server that notes what it was asked, and may change its answers."""

    def __init__(self, memory: MemoryStore) -> None:
        self.honest = blob_server(memory)
        self.asked: list[bytes] = []
        self.change: Callable[[bytes], bytes] = bytes

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.raw_path)
        response = await self.honest(request)
        if request.raw_path == b"/records/read":
            body = response.body
            if isinstance(body, Streamed):
                body = b"".join([bytes(piece) async for piece in body])
            return Response(response.status, response.headers, self.change(bytes(body)))
        return response


async def ask_all(store: BlobStore, names: Iterable[str]) -> list[Blob | BaseException]:
    return await asyncio.gather(*map(store.get, names), return_exceptions=True)


async def test_small_blobs_that_are_asked_for_at_once_come_together(far):
    server, store = far
    memory = MemoryStore()
    server.handle = watched = Watched(memory)
    for name in "abc":
        await calls.put(store, name, Bytes(name.encode()))
    await calls.put(store, "deleted", Bytes(b"x"))
    deleted = await calls.delete(store, "deleted")
    watched.asked.clear()
    names = ["a", "b", "absent", "deleted", "c"]
    a, b, absent, gone, c = await ask_all(store, names)
    assert watched.asked == [b"/records/read"]
    assert [blob.payload.whole for blob in (a, b, c)] == [b"a", b"b", b"c"]
    assert [blob.info for blob in (a, b, c)] == [await memory.stat(name) for name in "abc"]
    assert isinstance(absent, NotFound)
    assert isinstance(gone, NotFound)
    assert (absent.stamp, gone.stamp) == (0, deleted.stamp)


async def test_a_large_one_among_them_is_asked_for_alone(far):
    server, store = far
    server.handle = watched = Watched(MemoryStore())
    for name, size in (("small", 1), ("large", 262_144), ("second", 7)):
        await calls.put(store, name, Bytes(bytes(size)))
    watched.asked.clear()
    small, large, second = await ask_all(store, ["small", "large", "second"])
    assert watched.asked == [b"/records/read", b"/blob/large"]
    assert (small.payload.size, second.payload.size) == (1, 7)
    assert await read_whole(large.payload) == bytes(262_144)


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        (lambda body: body[:-1], "a"),
        (lambda body: body.replace(b"the data of b", b"the d@ta of b"), "a"),
        (lambda body: body[body.rindex(b"dlmn") :], ""),
        (lambda body: body[: body.rindex(b"dlmn")], "a"),
        (lambda body: b"", ""),
    ],
    ids=["cut", "flipped", "the second first", "the first only", "empty"],
)
async def test_what_did_not_come_whole_could_not_be_asked(far, change, fine):
    server, store = far
    server.handle = watched = Watched(MemoryStore())
    for name in "ab":
        await calls.put(store, name, Bytes(b"the data of " + name.encode()))
    watched.change = change
    answers = dict(zip("ab", await ask_all(store, "ab"), strict=True))
    for name, answer in answers.items():
        if name in fine:
            assert answer.payload.whole == b"the data of " + name.encode()
        else:
            assert isinstance(answer, Unavailable)


async def test_more_than_was_asked_for_is_not_taken(far):
    server, store = far
    memory = MemoryStore()
    server.handle = watched = Watched(memory)
    for name in "ab":
        await calls.put(store, name, Bytes(bytes(200_000)))
    watched.change = lambda _: b"".join(
        piece for name in "ab" for piece in frame(Blob(memory_info[name], Bytes(bytes(200_000))))
    )
    memory_info = {name: await memory.stat(name) for name in "ab"}
    first, second = await ask_all(store, "ab")
    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)


async def test_small_writes_at_once_go_together_and_each_gets_its_answer(far):
    server, store = far
    memory = MemoryStore()
    await calls.put(memory, "newer", Bytes(b"newer"), stamp=9 << 40)
    server.handle = watched = Watched(memory)
    await store.condition()
    watched.asked.clear()
    writes = [
        Write("a", Bytes(b"a"), stamp=1 << 40),
        Write("newer", Bytes(b"older"), stamp=1 << 40),
        Write("wrong", Bytes(b"x"), stamp=1 << 40, checksum=b"x" * 16),
        Write.tombstone("b", stamp=1 << 40),
        Write("large", Bytes(bytes(100_000)), stamp=1 << 40),
    ]
    answers = await asyncio.gather(*map(store.write, writes), return_exceptions=True)
    assert sorted(watched.asked) == [b"/blob/large", b"/records"]
    assert [type(each) for each in answers] == [Put, Put, BadContent, Put, Put]
    assert answers[1] == (Outcome.SUPERSEDED, 9 << 40)
    assert not store.capabilities.durable


@pytest.mark.parametrize("write", ["put", "put with a stamp", "delete"])
async def test_every_write_tells_anew_whether_it_is_durable(far, write):
    server, store = far
    memory = MemoryStore()
    server.handle = blob_server(memory)
    for durable in (True, False, True):
        memory.capabilities = replace(memory.capabilities, durable=durable)
        stamp = 1 << 40 if "stamp" in write else None
        if write == "delete":
            await calls.delete(store, "a")
        else:
            await calls.put(store, "a", Bytes(b"a"), stamp=stamp)
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
