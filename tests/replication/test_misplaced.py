"""A misplaced copy goes when those who should hold it have shown that they do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dolmen.cluster.groups import Group, Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.replication.misplaced import Dropping
from dolmen.replication.report import Dropped
from dolmen.stores.memory import MemoryStore
from dolmen.stores.retrying import Retrying, ServerFailed
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore
from replication.setting import names_on, no_time, put_on

KEPT, GONE = Dropped(kept=1), Dropped(removed=1, bytes=7)


class Trio:
    """Three servers with a copy of `object` each, two of which should; `other` is the third."""

    def __init__(self) -> None:
        self.stores = {name: FaultyStore(MemoryStore()) for name in "abc"}
        self.members = [Member(name, store) for name, store in self.stores.items()]
        self.asked = 0
        self.place(make_group("all", self.members, copies=2, volatile=True))

    def place(self, group: Group) -> None:
        self.placement = Placement([group])
        rightful = self.placement.of(partition_of("object")).rightful
        self.names = [member.name for member in rightful]
        self.one, self.two = (self.stores[name] for name in self.names)
        (self.other,) = (member for member in self.members if member not in rightful)

    async def drop(self, *failing: str) -> Dropped:
        stores = {
            name: Retrying(store, name, pause=no_time)
            for name, store in self.stores.items()
            if name not in failing
        }
        work = Dropping(self.other, self.placement, stores, None, Pace(), self.ready)
        await work.drop()
        return work.dropped

    async def ready(self) -> None:
        self.asked += 1


@pytest.fixture
async def trio() -> Trio:
    made = Trio()
    await put_on(made.stores.values(), "object")
    return made


async def test_one_that_all_hold_goes(trio: Trio):
    assert await trio.drop() == GONE
    assert trio.asked == 1
    assert await trio.drop() == Dropped()


async def test_one_that_is_newer_than_another_stays(trio: Trio):
    await put_on([trio.stores[trio.other.name]], "object", stamp=6)
    assert await trio.drop() == KEPT
    await put_on([trio.one], "object", stamp=7)
    assert await trio.drop() == KEPT
    await calls.delete(trio.two.store, "object", stamp=8)
    assert await trio.drop() == GONE


async def test_who_failed_vouches_for_nothing_and_nobody_reads_what_stays_all_the_same(trio: Trio):
    assert await trio.drop(trio.names[1]) == KEPT
    assert [*trio.one.calls, *trio.two.calls] == []


async def test_who_knows_no_stamps_can_not_vouch_for_one(trio: Trio):
    trio.two.capabilities = replace(trio.two.capabilities, stamps=False)
    assert await trio.drop() == KEPT
    assert [*trio.one.calls, *trio.two.calls] == []


async def test_who_lacked_most_is_asked_first(monkeypatch: pytest.MonkeyPatch, trio: Trio):
    monkeypatch.setattr("dolmen.replication.misplaced.BATCH", 2)
    names = [
        name
        for name in (f"object-{number}" for number in range(200))
        if {m.name for m in trio.placement.of(partition_of(name)).rightful} == set(trio.names)
    ]
    for name in names:
        await put_on([trio.one, trio.stores[trio.other.name]], name)
    assert await trio.drop() == Dropped(kept=len(names), removed=1, bytes=7)
    read = [name for method, name in trio.one.calls if method == "get"]
    assert len(read) <= 4, "in the first batch nobody knows yet"


async def test_who_can_not_be_asked_is_named(trio: Trio):
    trio.one.down = True
    with pytest.raises(ServerFailed) as failed:
        await trio.drop()
    assert failed.value.server == trio.names[0]
    assert await names_on(trio.stores[trio.other.name].store) == {"object"}


async def test_it_stays_where_a_rightful_server_turned_out_not_to_be_durable(trio: Trio):
    for store in trio.stores.values():
        store.capabilities = replace(store.capabilities, durable=True)
    trio.place(make_group("all", trio.members, copies=2))
    # It could not be asked when its place was worked out.
    trio.one.capabilities = replace(trio.one.capabilities, durable=False)
    assert await trio.drop() == KEPT


async def test_where_nobody_should_hold_it_it_stays(trio: Trio):
    for member in trio.members:
        member.weight = 0
    trio.placement = Placement([make_group("all", trio.members, volatile=True)])
    assert await trio.drop() == KEPT
