"""Bringing several servers to the same content."""

from __future__ import annotations

import pytest

from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.errors import ReadOnly, TooLarge, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.replication import replicate_group
from dolmen.replication.group import partitions_of
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore


async def nothing(_seconds: float) -> None:
    """Wait for no time at all."""


async def different(count: int) -> dict[str, FaultyStore]:
    stores = {name: FaultyStore(MemoryStore()) for name in "abcd"[:count]}
    for name, store in stores.items():
        for number in range(20):
            await calls.put(store.store, f"{name}-{number}", Bytes(name.encode()))
    return stores


async def test_every_server_gets_the_union() -> None:
    stores = await different(4)
    report = await replicate_group(stores, pause=nothing)
    assert report.complete
    digests = [await store.store.digests() for store in stores.values()]
    assert {found.root for found in digests} == {digests[0].root}
    assert digests[0].count == 80


async def test_a_server_that_is_down_does_not_keep_the_others_from_equality() -> None:
    stores = await different(3)
    stores["a"].down = True
    report = await replicate_group(stores, pause=nothing)
    assert not report.complete
    assert list(report.failing) == ["a"]
    assert (await stores["b"].store.digests()).root == (await stores["c"].store.digests()).root
    stores["a"].down = False
    assert (await replicate_group(stores, pause=nothing)).complete
    assert (await stores["a"].store.digests()).count == 60


@pytest.mark.parametrize("method", ["list", "get_many", "write_many"])
async def test_whoever_fails_in_the_middle_is_named(method: str) -> None:
    stores = await different(3)

    async def fail(called: str, _name: str) -> None:
        if called == method:
            raise Unavailable("gone")

    stores["b"].pause = fail
    report = await replicate_group(stores, pause=nothing)
    assert list(report.failing) == ["b"]
    union = {f"{name}-{number}" for name in "ac" for number in range(20)}
    for name in "ac":
        assert union <= {info.name async for info in stores[name].store.list()}


async def test_what_a_server_that_takes_no_writes_has_reaches_the_others() -> None:
    stores = await different(3)

    async def refuse(called: str, _name: str) -> None:
        if called in ("put", "delete"):
            raise ReadOnly("the disk failed")

    stores["a"].pause = refuse  # the first to be filled
    report = await replicate_group(stores, pause=nothing)
    assert list(report.failing) == ["a"]
    for name in "bc":
        assert (await stores[name].store.digests()).count == 60


async def test_a_refusal_of_one_server_does_not_keep_a_blob_from_another() -> None:
    stores = await different(3)
    stores["a"].script("put", *[TooLarge("not for me")] * 40)
    report = await replicate_group(stores, pause=nothing)
    assert not report.complete
    assert (await stores["c"].store.digests()).count == 60


async def test_a_server_gets_only_what_it_should_hold_from_whoever_has_it() -> None:
    stores = await different(3)
    halves = {"a": range(32_768), "b": range(32_768, 65_536), "c": range(0)}
    report = await replicate_group(stores, wanted=halves, pause=nothing)
    assert report.complete
    everything = {f"{name}-{number}" for name in "abc" for number in range(20)}
    for name in "ab":
        held = {info.name async for info in stores[name].store.list()}
        rightful = {each for each in everything if partition_of(each) in halves[name]}
        assert rightful <= held
        assert held - rightful <= {f"{name}-{number}" for number in range(20)}
    assert (await stores["c"].store.digests()).count == 20


async def test_progress_names_the_pair() -> None:
    stores = await different(2)
    pairs: set[tuple[str, str]] = set()
    await replicate_group(stores, progress=lambda a, b, _: pairs.add((a, b)), pause=nothing)
    assert pairs == {("a", "b"), ("b", "a")}


async def test_servers_in_step_cost_a_request_each() -> None:
    stores = await different(4)
    await replicate_group(stores, pause=nothing)
    for store in stores.values():
        store.calls.clear()
    assert (await replicate_group(stores, pause=nothing)).runs == {}
    assert [store.calls for store in stores.values()] == [[("digests", "")]] * 4


def test_a_single_group_with_a_copy_everywhere_needs_no_placement() -> None:
    members = [Member(name, MemoryStore()) for name in "ab"]
    wanted = partitions_of(Placement([make_group("one", members, volatile=True)]))
    assert wanted == {"a": range(65_536), "b": range(65_536)}


def test_with_fewer_copies_than_servers_placement_says_who_gets_what() -> None:
    members = [Member(name, MemoryStore()) for name in "abc"]
    wanted = partitions_of(Placement([make_group("one", members, copies=2, volatile=True)]))
    assert sum(map(len, wanted.values())) == 2 * 65_536
    for partition in range(0, 65_536, 1_000):
        assert sum(partition in held for held in wanted.values()) == 2
