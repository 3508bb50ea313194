"""Old deletes are forgotten, and stay deletes all the same."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen.cluster.groups import Member, make_group
from dolmen.errors import NotFound
from dolmen.payload import Bytes
from dolmen.replication import replicate
from dolmen.replication.horizon import catch_up, reclaim
from dolmen.replication.repair import DAY, Repair, Terms
from dolmen.stores.epoch import Seen
from dolmen.stores.horizon import horizon_in
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore
from replication.breaking_off import broken_off


class Cluster:
    """Servers with a copy of everything each, and a calendar."""

    def __init__(self, names: str = "abc") -> None:
        self.stores = {name: FaultyStore(MemoryStore()) for name in names}
        self.day = 20_000.0

    def at(self, day: float) -> int:
        """The stamp of a write on that day."""
        return int(day * DAY * 1_000) << 16

    async def pause(self, _seconds: float) -> None:
        await asyncio.sleep(0)

    def repair(self, **terms: object) -> Repair:
        members = [Member(name, store) for name, store in self.stores.items()]
        groups = [make_group("all", members, volatile=True)]
        return Repair(
            groups, Seen(0, ""), Terms(**terms), now=lambda: self.day * DAY, pause=self.pause
        )

    async def put(self, name: str, among: str = "abc") -> None:
        for each in among:
            await calls.put(self.stores[each].store, name, Bytes(b"x"), stamp=self.at(self.day))

    async def delete(self, name: str, among: str = "abc") -> None:
        for each in among:
            await calls.delete(self.stores[each].store, name, stamp=self.at(self.day))

    async def held(self, name: str) -> set[str]:
        return {info.name async for info in calls.listing(self.stores[name].store, tombstones=True)}

    async def horizon(self, name: str) -> int:
        return horizon_in(await self.stores[name].store.notes())


async def with_a_forgotten_delete() -> Cluster:
    cluster = Cluster()
    await calls.put(cluster, "object")
    await calls.put(cluster, "kept")
    cluster.day += 1
    await calls.delete(cluster, "object")
    cluster.day += 31
    assert (await cluster.repair().round()).reclaimed == 1
    return cluster


async def test_a_delete_is_forgotten_after_its_time_and_not_before():
    cluster = Cluster()
    await calls.put(cluster, "object")
    cluster.day += 1
    await calls.delete(cluster, "object")
    cluster.day += 29
    assert (await cluster.repair().round()).reclaimed == 0
    assert await cluster.held("a") == {"object"}
    cluster.day += 2
    assert (await cluster.repair().round()).reclaimed == 1
    assert await cluster.held("a") == await cluster.held("b") == set()
    assert {await cluster.horizon(name) for name in "abc"} == {cluster.at(cluster.day - 30)}
    assert (await cluster.repair().round()).complete


async def test_not_while_a_server_is_away():
    cluster = Cluster()
    await calls.put(cluster, "object")
    cluster.day += 1
    cluster.stores["b"].down = True
    await calls.delete(cluster, "object", among="ac")
    cluster.day += 100
    assert (await cluster.repair().round()).reclaimed == 0
    assert await cluster.held("a") == {"object"}
    cluster.stores["b"].down = False
    done = await cluster.repair().round()
    assert done.complete
    assert done.reclaimed == 1
    assert await cluster.held("b") == set()


async def test_a_server_that_was_out_of_the_cluster_brings_nothing_back():
    cluster = await with_a_forgotten_delete()
    away = FaultyStore(MemoryStore())
    await calls.put(away.store, "object", Bytes(b"x"), stamp=cluster.at(20_000))
    await calls.put(away.store, "kept", Bytes(b"x"), stamp=cluster.at(20_000))
    await calls.put(away.store, "new", Bytes(b"x"), stamp=cluster.at(cluster.day))
    cluster.stores["d"] = away
    done = await cluster.repair().round()
    assert not done.complete
    refused = done.runs["d", "a"].refused["MayBeDeleted"]
    assert (refused.count, refused.examples[0][0]) == (1, "object")
    assert await cluster.held("a") == {"kept", "new"}
    assert await cluster.horizon("d") == 0  # until a person has decided
    done = await cluster.repair(rejoin=True).round()
    assert done.complete
    assert await cluster.held("a") == {"kept", "new", "object"}
    assert await cluster.horizon("d") == await cluster.horizon("a")


async def test_an_empty_server_joins_without_ado():
    cluster = await with_a_forgotten_delete()
    cluster.stores["d"] = FaultyStore(MemoryStore())
    assert (await cluster.repair().round()).complete
    assert await cluster.held("d") == {"kept"}
    assert await cluster.horizon("d") == await cluster.horizon("a")


async def test_an_emptied_server_gets_nothing_doubtful_whoever_comes_first():
    cluster = await with_a_forgotten_delete()
    stale = cluster.stores["a"].store = MemoryStore()  # set back to an old state
    for name in ("object", "kept"):
        await calls.put(stale, name, Bytes(b"x"), stamp=cluster.at(20_000))
    cluster.stores["b"].store = MemoryStore()
    assert not (await cluster.repair().round()).complete
    assert await cluster.held("b") == {"kept"}


async def test_what_an_emptied_server_got_is_believed_though_another_is_away():
    cluster = await with_a_forgotten_delete()
    cluster.stores["b"].store = MemoryStore()
    await calls.put(cluster.stores["b"].store, "new", Bytes(b"x"), stamp=cluster.at(cluster.day))
    cluster.stores["c"].down = True
    await cluster.repair().round()
    await calls.remove(
        cluster.stores["a"].store, "kept", if_stamp=cluster.at(20_000)
    )  # it was damaged
    await cluster.repair().round()
    for name in "ab":
        assert await cluster.held(name) == {"kept", "new"}


async def test_a_server_that_fails_does_not_keep_an_emptied_one_from_catching_up():
    cluster = await with_a_forgotten_delete()
    cluster.stores["b"].store = MemoryStore()
    cluster.stores["a"].down = True
    assert list(await catch_up(cluster.stores, pause=cluster.pause)) == ["a"]
    assert await cluster.horizon("b") == await cluster.horizon("c") > 0


async def test_a_delete_that_still_has_something_to_delete_is_carried_there():
    cluster = await with_a_forgotten_delete()
    old, new = MemoryStore(), MemoryStore()
    await calls.put(old, "object", Bytes(b"x"), stamp=cluster.at(20_000))
    await old.note("horizon", b"f" * 16)
    await calls.delete(new, "object", stamp=cluster.at(20_001))
    assert (await replicate(new, old)).complete
    with pytest.raises(NotFound):
        await old.get("object")


async def test_a_forgotten_delete_is_not_copied_again():
    cluster = await with_a_forgotten_delete()
    late = MemoryStore()
    await calls.delete(late, "object", stamp=cluster.at(20_001))
    report = await replicate(late, cluster.stores["a"])
    assert report.complete
    assert await cluster.held("a") == {"kept"}


async def test_forgetting_that_was_broken_off_is_taken_up_again():
    for stop in range(200):
        cluster = Cluster()
        for number in range(5):
            await calls.put(cluster, f"object-{number}")
        cluster.day += 1
        for number in range(4):
            await calls.delete(cluster, f"object-{number}")
        cluster.day += 31
        work = cluster.repair().round()
        interrupted = await broken_off(work, cluster.stores.values(), after=stop)
        assert (await cluster.repair().round()).complete
        assert [await cluster.held(name) for name in "abc"] == [{"object-4"}] * 3
        if not interrupted:
            return
    raise AssertionError("it never came to its end")


async def test_what_not_every_store_agrees_about_is_not_forgotten():
    cluster = Cluster()
    for number, among in ((1, "ac"), (2, "abc"), (3, "abc")):
        await calls.put(cluster, f"object-{number}")
        cluster.day += 1
        await calls.delete(cluster, f"object-{number}", among=among)
    told = cluster.at(20_001) - 1
    gone = await reclaim(
        cluster.stores,
        age_ms=DAY * 1_000,
        now_ms=int(cluster.day + 10) * DAY * 1_000,
        epoch=None,
        pause=cluster.pause,
    )
    assert gone == 0
    assert {await cluster.horizon(name) for name in "abc"} == {told}
    assert await cluster.held("a") == {"object-1", "object-2", "object-3"}


async def test_what_came_back_after_all_had_agreed_keeps_its_delete():
    cluster = Cluster()
    await calls.put(cluster, "object")
    cluster.day += 1
    await calls.delete(cluster, "object")

    async def slip_in(method: str, _name: str) -> None:
        if method == "note":
            cluster.stores["c"].pause = None
            (info,) = [
                info async for info in calls.listing(cluster.stores["c"].store, tombstones=True)
            ]
            await calls.remove(cluster.stores["c"].store, "object", if_stamp=info.stamp)
            await calls.put(
                cluster.stores["c"].store, "object", Bytes(b"x"), stamp=cluster.at(20_000)
            )

    cluster.stores["c"].pause = slip_in
    cluster.day += 40
    await cluster.repair().round()
    assert await cluster.held("a") == {"object"}
    assert (await cluster.repair().round()).complete
    with pytest.raises(NotFound):
        await cluster.stores["c"].store.get("object")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "repair", "away", "back", "days"]),
        st.sampled_from("abc"),
        st.sampled_from(["one", "two"]),
    ),
    max_size=30,
)


@given(STEPS)
async def test_no_delete_that_all_were_told_of_is_ever_undone(steps):
    """Servers go away and come back, days go by: what was last decided is what ends up."""
    cluster = Cluster()
    last: dict[str, str] = {}
    for step, server, name in steps:
        up = "".join(each for each in "abc" if not cluster.stores[each].down)
        cluster.day += 0.01
        if step == "put" and up:
            await calls.put(cluster, name, among=up[:2])
            last[name] = "put"
        elif step == "delete" and up:
            await calls.delete(cluster, name, among=up)
            last[name] = "delete"
        elif step == "repair":
            await cluster.repair().round()
        elif step == "days":
            cluster.day += 20
        else:
            cluster.stores[server].down = step == "away"
    for store in cluster.stores.values():
        store.down = False
    assert (await cluster.repair().round()).complete
    for server in "abc":
        live = {info.name async for info in cluster.stores[server].store.list()}
        assert live == {name for name, what in last.items() if what == "put"}
