"""Rounds bring every server to what it should hold: nothing less, and nothing more."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Group, Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.errors import Corrupt, NotFound, Outdated, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.replication.repair import COMPARED, LONGEST, PAUSE, SETTLE, Repair, Terms, watch
from dolmen.stamps import format_stamp
from dolmen.store import EVERYTHING, BlobInfo, Rank
from dolmen.stores.epoch import Seen, seen_in
from dolmen.stores.memory import MemoryStore
from dolmen.stores.watermark import WATERMARK
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore
from replication.setting import broken_off, names_on, put_on

NAMES = [f"object-{number}" for number in range(60)]


class Time:
    """Seconds that go by only when somebody waits."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now(self) -> float:
        return self.seconds

    async def pause(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)


class Servers:
    """Stores by the names of servers, as configurations come and go."""

    def __init__(self, names: str) -> None:
        self.time = Time()
        self.stores = {name: FaultyStore(MemoryStore()) for name in names}

    def stamp(self, number: int) -> int:
        """The stamp of a write that is not long ago."""
        return (int(self.time.seconds * 1_000) - 1_000 + number) << 16

    def groups(self, *, copies: int, weights: dict[str, float] | None = None) -> list[Group]:
        weights = weights or dict.fromkeys(self.stores, 1.0)
        members = [Member(name, self.stores[name], weight) for name, weight in weights.items()]
        return [make_group("all", members, copies=copies, volatile=True)]

    def repair(self, groups: list[Group], epoch: int = 1, **terms: object) -> Repair:
        what = str([(g.copies, [(m.name, m.weight) for m in g.members]) for g in groups])
        return Repair(
            groups, Seen(epoch, what), Terms(**terms), now=self.time.now, pause=self.time.pause
        )

    async def held(self, name: str) -> set[str]:
        return await names_on(self.stores[name].store)

    async def assert_in_place(self, groups: list[Group], wanted: dict[str, bytes]) -> None:
        """Every blob is on its rightful servers, with its content, and on no other."""
        placement = Placement(groups)
        for name, store in self.stores.items():
            should = {
                each
                for each in wanted
                if name in {m.name for m in placement.of(partition_of(each)).rightful}
            }
            assert await self.held(name) == should
            for each in should:
                assert await read_whole((await store.store.get(each)).payload) == wanted[each]


async def filled(servers: Servers, groups: list[Group], epoch: int = 1) -> dict[str, bytes]:
    wanted = {name: name.encode() * 3 for name in NAMES}
    cluster = Cluster(groups)
    for name, data in wanted.items():
        await calls.put(cluster, name, Bytes(data))
    assert (await servers.repair(groups, epoch).round()).complete
    await servers.assert_in_place(groups, wanted)
    return wanted


async def test_a_server_that_joins_gets_what_it_should_hold_and_no_more_is_moved():
    servers = Servers("abcde")
    four, five = (
        servers.groups(copies=2, weights=dict.fromkeys(names, 1.0)) for names in ("abcd", "abcde")
    )
    wanted = await filled(servers, four)
    before = {name: await servers.held(name) for name in "abcd"}
    done = await servers.repair(five, epoch=2).round()
    assert done.complete
    await servers.assert_in_place(five, wanted)
    copied = sum(run.copied for run in done.runs.values())
    assert copied == len(await servers.held("e"))
    assert copied == sum(each.removed for each in done.dropped.values())
    for name, held in before.items():
        assert await servers.held(name) <= held
    assert (await servers.repair(five, epoch=2).round()).runs == {}


async def test_copies_are_made_up_for_where_a_server_turns_out_not_to_be_durable():
    servers = Servers("abc")
    for store in servers.stores.values():
        store.capabilities = replace(store.capabilities, durable=True)
    members = [Member(name, store) for name, store in servers.stores.items()]
    groups = [make_group("all", members, copies=2)]
    await filled(servers, groups)
    repair = servers.repair(groups)
    await repair.round()  # while nobody could ask a
    servers.stores["a"].capabilities = replace(servers.stores["a"].capabilities, durable=False)
    assert (await repair.round()).complete
    for name in "bc":
        assert await servers.held(name) == set(NAMES)


@pytest.mark.parametrize("trouble", ["down", "damaged", "wrong", "refusing"])
async def test_a_misplaced_copy_stays_until_every_rightful_one_was_read(trouble):
    servers = Servers("abc")
    groups = servers.groups(copies=2)
    name = "object"
    rightful = [m.name for m in Placement(groups).of(partition_of(name)).rightful]
    (other,) = set("abc") - set(rightful)
    await put_on(servers.stores.values(), name)
    weak = servers.stores[rightful[0]]
    if trouble == "down":
        weak.down = True
    elif trouble == "damaged":
        weak.script("get", *[Corrupt("rotten")] * 50)
    elif trouble == "wrong":
        await calls.delete(weak.store, name, stamp=1)
        await calls.remove(weak.store, name, if_stamp=5)
    else:
        weak.script("get", *[Unavailable("busy")] * 50)
        weak.script("put", *[Unavailable("busy")] * 50)
    done = await servers.repair(groups).round()
    if trouble == "wrong":  # it was copied there first
        assert done.complete
        assert await servers.held(other) == set()
    else:
        assert not done.complete
        assert await servers.held(other) == {name}


class Damaged(MemoryStore):
    """A store whose copy of `object` is quarantined until a sound one replaces it."""

    quarantine = True

    async def list(self, listing=EVERYTHING):
        if listing.quarantined and self.quarantine:
            yield BlobInfo("object", 7, Kind.BLOB, 5, bytes(16))
        elif not listing.quarantined:
            async for info in super().list(listing):
                if info.name != "object" or not self.quarantine:
                    yield info

    async def write(self, write):
        put = await super().write(write)
        self.quarantine = self.quarantine and write.stamp == 5 and not self.filled
        self.filled = True
        return put

    filled = False


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_misplaced_copy_that_is_damaged_goes_as_well(deleted):
    servers = Servers("abc")
    groups = servers.groups(copies=2)
    rightful = Placement(groups).of(partition_of("object")).rightful
    (other,) = set("abc") - {member.name for member in rightful}
    damaged = servers.stores[other].store = Damaged()
    await put_on(servers.stores.values(), "object")
    for member in rightful if deleted else ():  # while the other was away
        await calls.delete(servers.stores[member.name].store, "object", stamp=6)
    assert (await servers.repair(groups).round()).complete
    assert not damaged.quarantine
    assert await servers.held(other) == set()
    if deleted:
        with pytest.raises(NotFound):
            await Cluster(groups).get("object")


async def test_deletes_reach_every_rightful_server_and_leave_the_others():
    servers = Servers("abcd")
    groups = servers.groups(copies=2)
    wanted = await filled(servers, groups)
    servers.stores["a"].down = True
    cluster = Cluster(groups)
    for name in NAMES[:20]:
        await calls.delete(cluster, name)
    servers.stores["a"].down = False
    assert (await servers.repair(groups).round()).complete
    placement = Placement(groups)
    cluster = Cluster(groups)  # one that has not seen it fail
    for name in NAMES[:20]:
        with pytest.raises(NotFound):
            await cluster.get(name)
        rightful = {m.name for m in placement.of(partition_of(name)).rightful}
        for each in "abcd":
            assert (name in await servers.held(each)) == (each in rightful)
    for name in NAMES[20:]:
        assert await read_whole((await cluster.get(name)).payload) == wanted[name]


@pytest.mark.parametrize(
    ("copies", "weights", "epoch", "why"),
    [(2, dict.fromkeys("abc", 1.0), 1, "has seen epoch 2"), (1, None, 2, "epoch = 3")],
    ids=["an older one", "changed without a new epoch"],
)
async def test_another_configuration_changes_nothing(copies, weights, epoch, why):
    servers = Servers("abcd")
    await filled(servers, servers.groups(copies=2), epoch=2)
    before = {name: await servers.held(name) for name in "abcd"}
    with pytest.raises(Outdated, match=why):
        await servers.repair(servers.groups(copies=copies, weights=weights), epoch=epoch).round()
    assert {name: await servers.held(name) for name in "abcd"} == before


async def test_a_copy_everywhere_needs_no_epoch():
    servers = Servers("abc")
    for names in ("ab", "abc", "bc"):
        groups = servers.groups(copies=len(names), weights=dict.fromkeys(names, 1.0))
        assert (await servers.repair(groups, epoch=0).round()).complete
    assert seen_in(await servers.stores["b"].store.notes()).epoch == 0


async def test_nothing_is_removed_before_an_epoch_has_settled():
    servers = Servers("abc")
    groups = servers.groups(copies=1)
    await put_on(servers.stores.values(), "object")
    began, removed = servers.time.seconds, []

    async def watching(method: str, _name: str) -> None:
        if method == "remove_many":
            removed.append(servers.time.seconds)

    for store in servers.stores.values():
        store.pause = watching
    await servers.repair(groups).round()
    assert len(removed) == 2
    assert min(removed) >= began + SETTLE


@pytest.mark.parametrize(
    ("names", "same", "copies"), [("abcd", "d", 1), ("abcd", "d", 2), ("abc", "b", 2)]
)
async def test_one_store_under_two_names_does_not_vouch_for_itself(names, same, copies):
    """Reached by its name and by its address; or another's disk was copied."""
    servers = Servers(names)
    first = servers.stores[chr(ord(same) - 1)]
    if same == "d":
        servers.stores["d"] = first
    groups = servers.groups(copies=copies)
    for name in NAMES:
        await calls.put(Cluster(groups), name, Bytes(name.encode()))
    if same == "b":
        cloned = servers.stores["b"].store = MemoryStore()
        cloned._notes = dict(first.store._notes)
    before = {name: await servers.held(name) for name in names}
    for _ in range(2):
        done = await servers.repair(groups).round()
        assert f"the same store as {chr(ord(same) - 1)}" in done.failing[same]
        for name, held in before.items():
            assert await servers.held(name) >= held


@pytest.mark.parametrize("same_fingerprint", [True, False])
async def test_swapped_urls_end_the_round_before_anything_is_copied_or_removed(same_fingerprint):
    servers = Servers("abcd")
    groups = servers.groups(copies=1)
    await filled(servers, groups)
    before = {name: await servers.held(name) for name in "abcd"}
    stores = servers.stores
    stores["a"], stores["b"] = stores["b"], stores["a"]
    swapped = servers.repair(servers.groups(copies=1))
    if not same_fingerprint:  # the configuration says so, and not only what listens there
        swapped._membership._seen = swapped._seen = Seen(1, "URLs swapped")
    with pytest.raises(Outdated, match="configuration"):
        await swapped.round()
    stores["a"], stores["b"] = stores["b"], stores["a"]
    assert {name: await servers.held(name) for name in "abcd"} == before


async def test_two_repairers_with_swapped_urls_that_begin_at_once_remove_nothing():
    for first in range(0, 40, 4):
        servers = Servers("abc")
        groups = servers.groups(copies=1)
        for name in NAMES[:5]:
            await calls.put(Cluster(groups), name, Bytes(name.encode()))
        stores = servers.stores
        other = dict(stores) | {"a": stores["b"], "b": stores["a"]}
        members = [Member(name, store) for name, store in other.items()]
        swapped = Repair(
            [make_group("all", members, copies=1, volatile=True)],
            Seen(1, "swapped"),
            now=servers.time.now,
            pause=servers.time.pause,
        )
        asked, rounds = 0, []

        async def second(_method: str, _name: str) -> None:
            nonlocal asked
            asked += 1
            if asked == first + 1:  # noqa: B023 - awaited below
                rounds.append(asyncio.ensure_future(swapped.round()))  # noqa: B023

        for store in stores.values():
            store.pause = second
        rounds.append(asyncio.ensure_future(servers.repair(groups).round()))
        await asyncio.wait(rounds)
        await asyncio.gather(*rounds, return_exceptions=True)
        everything = set().union(*[await servers.held(name) for name in "abc"])
        assert everything == set(NAMES[:5])


@pytest.mark.parametrize("older", [False, True])
async def test_a_server_that_became_another_while_the_round_went_on_vouches_for_nothing(older):
    servers = Servers("abc")
    groups = servers.groups(copies=1)
    await put_on(servers.stores.values(), "object")
    (rightful,) = (m.name for m in Placement(groups).of(partition_of("object")).rightful)

    async def replaced(method: str, _name: str) -> None:
        if method == "get_many":
            servers.stores[rightful].pause = None
            disk, notes = MemoryStore(), await servers.stores[rightful].store.notes()
            if older:  # than the last purge
                disk._notes = notes
                await disk.note(WATERMARK, format_stamp(1).encode())
            await calls.put(disk, "object", Bytes(b"content"), stamp=5)
            servers.stores[rightful].store = disk

    for store in servers.stores.values():
        await store.store.note(WATERMARK, format_stamp(2).encode())
    servers.stores[rightful].pause = replaced
    done = await servers.repair(groups).round()
    assert "another store" in done.failing[rightful]
    for each in set("abc") - {rightful}:
        assert await servers.held(each) == {"object"}


async def test_who_falls_behind_while_it_removes_is_refused():
    servers = Servers("abcd")
    old = servers.groups(copies=1, weights=dict.fromkeys("abc", 1.0))
    new = servers.groups(copies=1, weights={"a": 0, "b": 0, "c": 0, "d": 1})
    await put_on(servers.stores.values(), "object")

    async def overtaken(method: str, _name: str) -> None:
        if method == "remove_many":
            for store in servers.stores.values():
                store.pause = None
            await servers.repair(new, epoch=2).round()

    for store in servers.stores.values():
        store.pause = overtaken
    with pytest.raises(Outdated):
        await servers.repair(old, epoch=1).round()
    assert await servers.held("d") == {"object"}


async def test_a_round_broken_off_anywhere_is_made_good_by_the_next():
    for stop in range(0, 400, 7):
        servers = Servers("abcd")
        wanted = await filled(servers, servers.groups(copies=2))
        drained = servers.groups(copies=2, weights={"a": 1, "b": 1, "c": 1, "d": 0})
        work = servers.repair(drained, epoch=2).round()
        interrupted = await broken_off(work, servers.stores.values(), after=stop)
        assert (await servers.repair(drained, epoch=2).round()).complete
        await servers.assert_in_place(drained, wanted)
        if not interrupted:
            return
    raise AssertionError("it never came to its end")


async def test_two_at_once_do_no_harm():
    servers = Servers("abcd")
    wanted = await filled(servers, servers.groups(copies=2))
    drained = servers.groups(copies=2, weights={"a": 0, "b": 1, "c": 1, "d": 1})
    servers.stores["c"].store = MemoryStore()
    await asyncio.gather(*(servers.repair(drained, epoch=2).round() for _ in range(3)))
    assert (await servers.repair(drained, epoch=2).round()).complete
    await servers.assert_in_place(drained, wanted)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
async def test_whatever_stands_where_ends_in_its_place(data):
    """Any state of any servers: the highest rank of every name ends on its rightful servers."""
    servers = Servers("abcde")
    weights = {name: data.draw(st.sampled_from([0.0, 1.0, 3.0])) for name in "abcde"}
    holding = sum(weight > 0 for weight in weights.values())
    if not holding:
        return
    groups = servers.groups(copies=data.draw(st.integers(1, holding)), weights=weights)
    writes = st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from(NAMES[:4]),
        st.sampled_from([b"", b"one", b"two", None]),
        st.integers(1, 3),
        st.sampled_from([Kind.BLOB, Kind.MANIFEST]),
    )
    best: dict[str, Rank] = {}
    for server, name, content, stamp, kind in data.draw(st.lists(writes, max_size=25)):
        store = servers.stores[server].store
        if content is None:
            await calls.delete(store, name, stamp=servers.stamp(stamp))
        else:
            await calls.put(store, name, Bytes(content), stamp=servers.stamp(stamp), kind=kind)
    for name in NAMES[:4]:
        for store in servers.stores.values():
            try:
                info = await calls.current(store.store, name)
            except NotFound:
                continue
            if name not in best or info.rank > best[name]:
                best[name] = info.rank
    repair = servers.repair(groups)
    assert (await repair.round()).complete
    placement = Placement(groups)
    for name, rank in best.items():
        rightful = {m.name for m in placement.of(partition_of(name)).rightful}
        for each, store in servers.stores.items():
            if each in rightful:
                assert (await calls.current(store.store, name)).rank == rank
            else:
                assert name not in await servers.held(each)
    again = await repair.round()
    assert again.complete
    assert (again.runs, again.dropped) == ({}, {})


async def test_a_complete_round_is_noted_on_every_server_with_the_time_it_began():
    servers = Servers("ab")
    servers.stores["a"].down = True
    repair = servers.repair(servers.groups(copies=1))
    await repair.round()
    assert COMPARED not in await servers.stores["b"].store.notes()
    servers.stores["a"].down = False
    began = servers.time.seconds
    assert (await repair.round()).complete
    assert servers.time.seconds > began  # a new epoch had to settle: much may have come meanwhile
    for store in servers.stores.values():
        assert json.loads((await store.store.notes())[COMPARED])["at"] == began


async def test_a_failing_server_is_asked_less_and_less():
    servers = Servers("abc")
    servers.stores["b"].down = True
    began = servers.time.seconds
    asked: Counter[float] = Counter()

    async def count(_method: str, _name: str) -> None:
        asked[servers.time.seconds - began] += 1

    servers.stores["b"].pause = count
    rounds = watch(
        servers.repair(servers.groups(copies=3)), now=servers.time.now, pause=servers.time.pause
    )
    for _ in range(120):
        done = await anext(rounds)
        assert "b" in done.failing
    first = sum(1 for at in asked if at < 60)
    assert first >= 3
    late = [at for at in asked if at > 600]
    assert late
    assert len(late) * LONGEST <= 120 * PAUSE * 6  # a few attempts each time
    servers.stores["b"].down = False
    for _ in range(40):
        if (await anext(rounds)).complete:
            break
    else:
        raise AssertionError("it was never asked again")
    await rounds.aclose()
