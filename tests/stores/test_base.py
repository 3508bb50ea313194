import asyncio
from contextlib import aclosing

import pytest

from dolmen.errors import Unavailable
from dolmen.payload import Bytes
from dolmen.store import Failed, Put, Remove, Write
from dolmen.stores.base import WINDOW
from dolmen.stores.memory import MemoryStore
from dolmen.testing.conformance.material import streamed


class Held(MemoryStore):
    """Counts the operations under way; each goes on when `go_on` is set."""

    reads_ahead = 4

    def __init__(self):
        super().__init__()
        self.running = self.most = 0
        self.go_on = asyncio.Event()

    async def held(self, operation):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
            return await operation
        finally:
            operation.close()
            for _ in range(10):  # ending takes its time
                await asyncio.sleep(0)
            self.running -= 1

    async def write(self, write):
        return await self.held(super().write(write))

    async def get(self, name, *, byte_range=None):
        return await self.held(super().get(name, byte_range=byte_range))

    async def remove(self, remove, *, min_age):
        return await self.held(super().remove(remove, min_age=min_age))


async def writes(count=200):
    for number in range(count):
        yield Write(f"n{number}", Bytes(b"x"), stamp=1)


async def collected(answers):
    async with aclosing(answers):
        return [answer async for answer in answers]


NAMES = [f"n{number}" for number in range(200)]
BULK = {
    "write_many": (WINDOW, lambda store: collected(store.write_many(writes()))),
    "get_many": (Held.reads_ahead, lambda store: collected(store.get_many(NAMES))),
    "remove_many": (WINDOW, lambda store: store.remove_many([Remove(name, 1) for name in NAMES])),
}


@pytest.fixture(params=BULK)
async def bulk(request):
    """A store, a bulk operation on it that is held, and how much of it may be under way."""
    store = Held()
    if request.param != "write_many":
        for name in NAMES:
            await MemoryStore.write(store, Write(name, Bytes(b"x"), stamp=1))
    most, operation = BULK[request.param]
    under_way = asyncio.ensure_future(operation(store))
    async with asyncio.timeout(10):
        while store.running < most:
            await asyncio.sleep(0)
    return store, under_way, most


async def test_a_window_of_operations_is_under_way_and_no_more(bulk):
    store, under_way, most = bulk
    store.go_on.set()
    answers = await under_way
    assert len(answers) == len(NAMES)
    assert not any(isinstance(answer, Failed) for answer in answers)
    assert all(answers)
    assert store.most == most


async def test_a_bulk_operation_that_is_cancelled_leaves_nothing_running(bulk):
    store, under_way, _ = bulk
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    assert store.running == 0


async def test_a_source_that_breaks_off_leaves_nothing_running():
    async def source():
        async for write in writes(5):
            yield write
        await asyncio.sleep(0)  # the writes begin
        raise Unavailable("the other store went away")

    store = Held()
    with pytest.raises(Unavailable):
        await collected(store.write_many(source()))
    assert store.most == 5
    assert store.running == 0


async def test_a_streamed_payload_is_read_before_the_next_write_is_asked_for():
    payloads = [streamed(b"x" * 1000) for _ in range(3)]

    async def source():
        for number, payload in enumerate(payloads):
            assert all(before._read for before in payloads[:number])
            yield Write(f"n{number}", payload, stamp=1)

    answers = await collected(MemoryStore().write_many(source()))
    assert [type(answer) for answer in answers] == [Put] * 3
