"""Bringing several servers to the same content."""

from __future__ import annotations

import pytest

from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.errors import DolmenError, ReadOnly, TooLarge, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.replication import replicate_group
from dolmen.replication.group import partitions_of
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore
from replication.setting import names_on, no_time


def of(names: str) -> set[str]:
    """What these servers have in the beginning."""
    return {f"{name}-{number}" for name in names for number in range(20)}


async def different(count: int) -> dict[str, FaultyStore]:
    stores = {name: FaultyStore(MemoryStore()) for name in "abcd"[:count]}
    for name, store in stores.items():
        for each in of(name):
            await calls.put(store.store, each, Bytes(name.encode()))
    return stores


async def test_every_server_gets_the_union_and_in_step_they_cost_a_request_each() -> None:
    stores = await different(4)
    pairs: set[tuple[str, str]] = set()
    report = await replicate_group(
        stores, progress=lambda one, other, _: pairs.add((one, other)), pause=no_time
    )
    assert report.complete
    assert pairs == report.runs.keys()
    for store in stores.values():
        assert await names_on(store.store) == of("abcd")
        store.calls.clear()
    assert (await replicate_group(stores, pause=no_time)).runs == {}
    assert [store.calls for store in stores.values()] == [[("digests", "")]] * 4


GONE, FAILED = Unavailable("gone"), ReadOnly("the disk failed")


@pytest.mark.parametrize(
    ("failing", "methods", "error", "others"),
    [
        ("a", ("digests",), GONE, "bc"),
        ("b", ("list",), GONE, "ac"),
        ("b", ("get_many",), GONE, "ac"),
        ("b", ("write_many",), GONE, "ac"),
        ("a", ("put", "delete"), FAILED, "abc"),  # it is copied from all the same
    ],
)
async def test_who_fails_is_named_and_in_nobody_elses_way(
    failing: str, methods: tuple[str, ...], error: DolmenError, others: str
) -> None:
    stores = await different(3)

    async def fail(called: str, _name: str) -> None:
        if called in methods:
            raise error

    stores[failing].pause = fail
    report = await replicate_group(stores, pause=no_time)
    assert not report.complete
    assert list(report.failing) == [failing]
    for name in {"a", "b", "c"} - {failing}:
        assert await names_on(stores[name].store) >= of(others)
    stores[failing].pause = None
    assert (await replicate_group(stores, pause=no_time)).complete
    assert await names_on(stores[failing].store) == of("abc")


async def test_a_refusal_of_one_server_does_not_keep_a_blob_from_another() -> None:
    stores = await different(3)
    stores["a"].script("put", *[TooLarge("not for me")] * 40)
    assert not (await replicate_group(stores, pause=no_time)).complete
    assert await names_on(stores["c"].store) == of("abc")


async def test_a_server_gets_only_what_it_should_hold_from_whoever_has_it() -> None:
    stores = await different(3)
    halves = {"a": range(32_768), "b": range(32_768, 65_536), "c": range(0)}
    assert (await replicate_group(stores, wanted=halves, pause=no_time)).complete
    for name, half in halves.items():
        rightful = {each for each in of("abc") if partition_of(each) in half}
        assert await names_on(stores[name].store) == rightful | of(name)


def test_placement_says_who_gets_what_where_not_all_get_all() -> None:
    members = [Member(name, MemoryStore()) for name in "abc"]
    wanted = partitions_of(Placement([make_group("one", members, volatile=True)]))
    assert wanted == dict.fromkeys("abc", range(65_536))
    wanted = partitions_of(Placement([make_group("one", members, copies=2, volatile=True)]))
    for partition in range(0, 65_536, 1_000):
        assert sum(partition in held for held in wanted.values()) == 2
