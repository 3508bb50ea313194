"""A misplaced copy goes when those who should hold it have shown that they do."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.payload import Bytes
from dolmen.replication.misplaced import Dropped, Dropping
from dolmen.stores.memory import MemoryStore
from dolmen.stores.retrying import Retrying
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore


class Trio:
    """Three servers, two of which should hold `object`; `other` is the third."""

    def __init__(self) -> None:
        self.stores = {name: FaultyStore(MemoryStore()) for name in "abc"}
        members = [Member(name, store) for name, store in self.stores.items()]
        self.placement = Placement([make_group("all", members, copies=2, volatile=True)])
        rightful = self.placement.of(partition_of("object")).rightful
        self.rightful = [self.stores[member.name] for member in rightful]
        self.names = [member.name for member in rightful]
        (self.other,) = (member for member in members if member not in rightful)
        self.asked = 0

    async def drop(self, *failing: str) -> Dropped:
        stores = {
            name: Retrying(store, name, pause=lambda _: asyncio.sleep(0))
            for name, store in self.stores.items()
            if name not in failing
        }
        work = Dropping(self.other, self.placement, stores, None, Pace(), self.ready)
        await work.drop()
        return work.dropped

    async def ready(self) -> None:
        self.asked += 1


async def test_one_that_all_hold_goes():
    trio = Trio()
    for store in trio.stores.values():
        await calls.put(store.store, "object", Bytes(b"content"), stamp=5)
    assert await trio.drop() == Dropped(removed=1, bytes=7)
    assert trio.asked == 1
    assert await trio.drop() == Dropped()


async def test_one_that_is_newer_than_another_stays():
    trio = Trio()
    for store, stamp in zip(trio.stores.values(), (5, 5, 5), strict=True):
        await calls.put(store.store, "object", Bytes(b"content"), stamp=stamp)
    await calls.put(trio.stores[trio.other.name].store, "object", Bytes(b"content"), stamp=6)
    assert await trio.drop() == Dropped(kept=1)
    await calls.put(trio.rightful[0].store, "object", Bytes(b"content"), stamp=7)
    assert await trio.drop() == Dropped(kept=1)
    await calls.delete(trio.rightful[1].store, "object", stamp=8)
    assert await trio.drop() == Dropped(removed=1, bytes=7)


async def test_a_server_that_failed_is_not_asked_and_vouches_for_nothing():
    trio = Trio()
    for store in trio.stores.values():
        await calls.put(store.store, "object", Bytes(b"content"), stamp=5)
    assert await trio.drop(trio.names[1]) == Dropped(kept=1)
    assert trio.rightful[1].calls == []


async def test_what_stays_for_want_of_one_server_is_not_read_on_another():
    trio = Trio()
    for store in trio.stores.values():
        await calls.put(store.store, "object", Bytes(b"content"), stamp=5)
    assert await trio.drop(trio.names[1]) == Dropped(kept=1)
    assert trio.rightful[0].calls == []


async def test_what_a_server_without_stamps_can_not_vouch_for_is_not_read_there():
    trio = Trio()
    for store in trio.stores.values():
        await calls.put(store.store, "object", Bytes(b"content"), stamp=5)
    plain = trio.rightful[1]
    plain.capabilities = replace(plain.capabilities, stamps=False)
    assert await trio.drop() == Dropped(kept=1)
    assert [*trio.rightful[0].calls, *plain.calls] == []


async def test_who_lacked_most_is_asked_first(monkeypatch):
    monkeypatch.setattr("dolmen.replication.misplaced.BATCH", 2)
    trio = Trio()
    names = [
        name
        for name in (f"object-{number}" for number in range(200))
        if {m.name for m in trio.placement.of(partition_of(name)).rightful} == set(trio.names)
    ]
    for name in names:
        for store in (trio.rightful[0], trio.stores[trio.other.name]):
            await calls.put(store.store, name, Bytes(b"content"), stamp=5)
    assert await trio.drop() == Dropped(kept=len(names))
    read = [name for method, name in trio.rightful[0].calls if method == "get"]
    assert len(read) <= 2, "in the first batch nobody knows yet"


async def test_who_can_not_be_asked_is_named():
    trio = Trio()
    for store in trio.stores.values():
        await calls.put(store.store, "object", Bytes(b"content"), stamp=5)
    trio.rightful[0].down = True
    dropped = await trio.drop()
    assert dropped.kept == 1
    assert list(dropped.failing) == [trio.names[0]]


async def test_it_stays_where_a_rightful_server_turned_out_not_to_be_durable():
    trio = Trio()
    for store in trio.stores.values():
        store.capabilities = replace(store.capabilities, durable=True)
        await calls.put(store.store, "object", Bytes(b"content"), stamp=5)
    members = [Member(name, store) for name, store in trio.stores.items()]
    trio.placement = Placement([make_group("all", members, copies=2)])
    place = trio.placement.of(partition_of("object"))
    (trio.other,) = set(members) - {*place.rightful}
    # It could not be asked when its place was worked out.
    weak = trio.rightful[0]
    weak.capabilities = replace(weak.capabilities, durable=False)
    assert await trio.drop() == Dropped(kept=1)


async def test_where_nobody_should_hold_it_it_stays():
    trio = Trio()
    nobody = [Member(name, store, 0) for name, store in trio.stores.items()]
    trio.placement = Placement([make_group("all", nobody, volatile=True)])
    (trio.other,) = (member for member in nobody if member.name == trio.other.name)
    await calls.put(trio.other.store.store, "object", Bytes(b"content"), stamp=5)
    assert await trio.drop() == Dropped(kept=1)
