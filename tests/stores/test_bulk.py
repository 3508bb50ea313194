import asyncio

import pytest

from dolmen.errors import NotFound, Unavailable
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob, Failed, Put
from dolmen.stores.memory import MemoryStore
from dolmen.stores.old_bulk import WINDOW
from dolmen.testing import calls
from dolmen.testing.conformance.bulk import blob_of
from dolmen.testing.conformance.material import info_of, streamed


class Slow(MemoryStore):
    """Counts the puts under way; each goes on when it is let."""

    def __init__(self):
        super().__init__()
        self.running = self.most = 0
        self.go_on = asyncio.Event()

    async def put(self, name, payload, **options):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
            return await super().put(name, payload, **options)
        finally:
            for _ in range(10):  # letting go takes its time
                await asyncio.sleep(0)
            self.running -= 1


async def many(count=200):
    for number in range(count):
        yield blob_of(f"n{number}", b"x", 1)


async def test_a_window_of_puts_is_under_way_and_no_more():
    store = Slow()
    answers = asyncio.ensure_future(collected(calls.put_many(store, many())))
    while store.running < WINDOW:
        await asyncio.sleep(0)
    store.go_on.set()
    assert all(isinstance(answer, Put) for answer in await answers)
    assert store.most == WINDOW


async def collected(answers):
    return [answer async for answer in answers]


async def test_a_bulk_write_that_is_given_up_leaves_nothing_running():
    store = Slow()
    answers = asyncio.ensure_future(collected(calls.put_many(store, many())))
    while store.running < WINDOW:
        await asyncio.sleep(0)
    answers.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answers
    assert store.running == 0


async def test_a_source_that_breaks_off_leaves_nothing_running():
    async def blobs():
        async for blob in many(5):
            yield blob
        await asyncio.sleep(0)  # the puts begin
        raise Unavailable("the other store went away")

    store = Slow()
    with pytest.raises(Unavailable):
        await collected(calls.put_many(store, blobs()))
    assert store.running == 0


async def test_a_streamed_payload_is_read_before_the_next_blob_is_asked_for():
    store, asked = MemoryStore(), []

    async def blobs():
        for number in range(3):
            asked.append(number)
            data = b"x" * 1000
            payload = streamed(data)
            yield Blob(info_of(f"n{number}", data, stamp=1), payload)
            assert payload._read

    assert [type(answer) for answer in await collected(calls.put_many(store, blobs()))] == [Put] * 3
    assert asked == [0, 1, 2]


async def test_a_blob_written_again_while_its_tombstone_is_looked_for_is_read():
    class Reborn(MemoryStore):
        async def stat(self, name, *, tombstones=False):
            if tombstones:
                await self.put(name, Bytes(b"again"), stamp=3)
            return await super().stat(name, tombstones=tombstones)

    store = Reborn()
    await calls.delete(store, "name", stamp=2)
    (blob,) = await collected(store.get_many(["name"]))
    assert blob.info.kind is Kind.BLOB
    assert blob.payload.whole == b"again"


async def test_a_tombstone_removed_while_it_is_looked_for_is_not_found():
    class Forgetting(MemoryStore):
        async def stat(self, name, *, tombstones=False):
            if tombstones:
                await self.remove(name, if_stamp=2)
            return await super().stat(name, tombstones=tombstones)

    store = Forgetting()
    await calls.delete(store, "name", stamp=2)
    (failed,) = await collected(store.get_many(["name"]))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, NotFound)
