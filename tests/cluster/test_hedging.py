"""Behind a member that is often late the next one is asked too, and seldom enough."""

import asyncio

import pytest

from cluster.conftest import Time, in_order, made
from dolmen.cluster.hedging import GRAY, LATE, SHARE, WINDOW
from dolmen.errors import NotFound
from dolmen.names import partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.testing import calls
from dolmen.testing.faulty import Fault


class Setting:
    def __init__(self):
        self.now = Time()
        _, self.cluster = made(now=self.now)
        self.order = self.cluster.placement.of(partition_of("name")).order
        self.first, self.second, _ = in_order(self.cluster, "name")

    def window(self, *, late=0):
        """So many answers, all of a millisecond but those the first member gave late."""
        for number in range(WINDOW):
            self.cluster.hedging.took(self.order[0], 0.2 if number < late else 0.001)

    async def put(self, *, late=LATE):
        """Have the first two hold a blob, and the first answer late so often in a window."""
        for store in (self.first, self.second):
            await calls.put(store, "name", Bytes(b"data"), stamp=7)
            store.calls.clear()
        self.window()
        self.window(late=late)

    async def read(self):
        async with asyncio.timeout(10):
            return bytes(await read_whole((await self.cluster.get("name")).payload))

    async def both_asked(self):
        """Begin to read while nobody answers, until both have been asked."""
        going = self.hold(self.first), self.hold(self.second)
        reading = asyncio.create_task(self.cluster.get("name"))
        while not self.second.calls:
            await asyncio.sleep(0)
        return *going, reading

    def hold(self, store):
        """Let a store answer no more until it is let go."""
        going = asyncio.Event()

        async def pause(_method, _name):
            await going.wait()

        store.pause = pause
        return going


@pytest.fixture
async def setting():
    return Setting()


async def test_behind_a_gray_member_the_next_one_is_asked(setting):
    await setting.put()
    assert [*setting.cluster.hedging.gray] == [setting.order[0].name]
    setting.hold(setting.first)
    assert await setting.read() == b"data"
    assert setting.cluster.hedging.hedged == 1
    assert ("get", "name") in setting.second.calls


async def test_without_a_gray_member_nobody_is_asked_twice(setting):
    await setting.put(late=LATE - 1)
    assert not setting.cluster.hedging.gray
    going = setting.hold(setting.first)
    reading = asyncio.create_task(setting.read())
    await asyncio.sleep(0.05)
    assert not reading.done()
    going.set()
    assert await reading == b"data"
    assert setting.second.calls == []


async def test_a_member_is_gray_no_more_once_it_has_been_in_time_for_long(setting):
    setting.window()
    setting.window(late=LATE)
    setting.now.passed += GRAY
    setting.window()
    assert not setting.cluster.hedging.gray


async def test_no_more_than_a_share_is_asked_twice(setting):
    await setting.put()
    going = setting.hold(setting.first)
    allowed = int(2 * SHARE * WINDOW)
    for _ in range(allowed):
        await setting.read()
    reading = asyncio.create_task(setting.read())
    await asyncio.sleep(0.05)
    assert not reading.done()
    assert setting.cluster.hedging.hedged == allowed
    going.set()
    assert await reading == b"data"


async def test_what_none_of_the_two_has_is_asked_of_everyone(setting):
    await setting.put()
    setting.first.script("get", Fault.CORRUPT, Fault.UNAVAILABLE)
    assert await setting.read() == b"data"
    await calls.delete(setting.cluster, "name")
    with pytest.raises(NotFound):
        await setting.cluster.get("name")


async def test_a_no_is_not_outrun_by_an_older_copy(setting):
    await setting.put()
    await calls.delete(setting.first, "name", stamp=8)
    first, second, reading = await setting.both_asked()
    first.set()
    await asyncio.sleep(0)
    second.set()
    with pytest.raises(NotFound):
        await reading


async def test_a_reader_who_goes_away_leaves_nothing_behind(setting):
    await setting.put()
    _, _, reading = await setting.both_asked()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
