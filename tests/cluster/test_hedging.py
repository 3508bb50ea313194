"""Behind a member that is often late the next one is asked too, and seldom enough."""

import asyncio

import pytest

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.hedging import GRAY, LATE, SHARE, WINDOW
from dolmen.errors import NotFound
from dolmen.names import partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore


@pytest.fixture
async def setting():
    return Setting()


class Setting:
    def __init__(self):
        self.passed = 0.0
        members = [Member(f"m{number}", FaultyStore(MemoryStore())) for number in range(3)]
        self.cluster = Cluster([make_group("g", members, volatile=True)], now=lambda: self.passed)
        self.order = self.cluster.placement.of(partition_of("name")).order
        self.first, self.second, _ = (member.store for member in self.order)

    def window(self, *, late=0):
        """So many answers, all of a millisecond but those the first member gave late."""
        for number in range(WINDOW):
            self.cluster.hedging.took(self.order[0], 0.2 if number < late else 0.001)

    async def put(self):
        for store in (self.first, self.second):
            await calls.put(store, "name", Bytes(b"data"), stamp=7)
            store.calls.clear()

    async def read(self):
        async with asyncio.timeout(10):
            return bytes(await read_whole((await self.cluster.get("name")).payload))

    def hold(self, store):
        """Let a store answer no more until it is let go."""
        going = asyncio.Event()

        async def pause(_method, _name):
            await going.wait()

        store.pause = pause
        return going


async def test_behind_a_gray_member_the_next_one_is_asked(setting):
    await setting.put()
    setting.window()
    setting.window(late=LATE)
    assert [*setting.cluster.hedging.gray] == [setting.order[0].name]
    setting.hold(setting.first)
    assert await setting.read() == b"data"
    assert setting.cluster.hedging.hedged == 1
    assert ("get", "name") in setting.second.calls


async def test_without_a_gray_member_nobody_is_asked_twice(setting):
    await setting.put()
    setting.window()
    setting.window(late=LATE - 1)
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
    setting.passed += GRAY
    setting.window()
    assert not setting.cluster.hedging.gray


async def test_no_more_than_a_share_is_asked_twice(setting):
    await setting.put()
    setting.window()
    setting.window(late=LATE)
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
    setting.window()
    setting.window(late=LATE)
    setting.first.script("get", Fault.CORRUPT, Fault.UNAVAILABLE)
    assert await setting.read() == b"data"
    await calls.delete(setting.cluster, "name")
    with pytest.raises(NotFound):
        await setting.cluster.get("name")


async def test_a_no_is_not_outrun_by_an_older_copy(setting):
    await setting.put()
    await calls.delete(setting.first, "name", stamp=8)
    setting.window()
    setting.window(late=LATE)
    first, second = setting.hold(setting.first), setting.hold(setting.second)
    reading = asyncio.create_task(setting.cluster.get("name"))
    while not setting.second.calls:
        await asyncio.sleep(0)
    first.set()
    await asyncio.sleep(0)
    second.set()
    with pytest.raises(NotFound):
        await reading


async def test_a_reader_who_goes_away_leaves_nothing_behind(setting):
    await setting.put()
    setting.window()
    setting.window(late=LATE)
    setting.hold(setting.first)
    setting.hold(setting.second)
    reading = asyncio.create_task(setting.cluster.get("name"))
    while not setting.second.calls:
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
