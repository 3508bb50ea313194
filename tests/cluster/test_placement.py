from collections import Counter
from dataclasses import replace

import pytest

from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.errors import BadSetting
from dolmen.names import PARTITIONS
from dolmen.stores.memory import MemoryStore

STORE = MemoryStore()
SOME = range(0, PARTITIONS, 16)


def members(*names: str, weight: float = 1, zone: str | None = None) -> list[Member]:
    return [Member(name, STORE, weight, zone) for name in names]


def placed(found: list[Member], copies: int = 2) -> Placement:
    return Placement([make_group("g", found, copies=copies, volatile=True)])


def order(placement: Placement, partition: int) -> list[str]:
    return [member.name for member in placement.of(partition).order]


def test_the_order_is_the_same_everywhere_and_for_ever():
    placement = placed(members("a", "b", "c", "d"))
    assert [order(placement, partition) for partition in (0, 1, 65_535)] == [
        ["b", "a", "c", "d"],
        ["a", "d", "b", "c"],
        ["c", "a", "d", "b"],
    ]


def test_every_server_is_in_the_order_of_every_partition():
    groups = [
        make_group("one", members("a", "b"), volatile=True),
        make_group("two", members("c", "d", "e"), volatile=True),
    ]
    placement = Placement(groups)
    for partition in SOME:
        assert sorted(order(placement, partition)) == ["a", "b", "c", "d", "e"]
        home = placement.of(partition).group
        first = placement.of(partition).order[: len(home.members)]
        assert set(first) == set(home.members)


def test_a_server_that_joins_moves_only_what_it_wins():
    before, after = placed(members("a", "b", "c")), placed(members("a", "b", "c", "new"))
    moved = 0
    for partition in SOME:
        old = [m.name for m in before.of(partition).rightful]
        new = [m.name for m in after.of(partition).rightful]
        assert [name for name in new if name != "new"] == old[: 2 - ("new" in new)]
        moved += "new" in new
    assert 0.45 < moved / len(SOME) < 0.55  # two of four copies


def test_shares_follow_weights():
    found = members("small", weight=1) + members("large", weight=3)
    first = Counter(order(placed(found, 1), partition)[0] for partition in SOME)
    assert 0.72 < first["large"] / len(SOME) < 0.78


def test_copies_go_to_different_zones():
    found = members("a1", "a2", zone="a") + members("b1", "b2", zone="b")
    for partition in SOME:
        zones = {member.zone for member in placed(found).of(partition).rightful}
        assert zones == {"a", "b"}


def test_what_is_not_durable_is_ranked_and_counts_for_nothing():
    keeping = MemoryStore()
    keeping.capabilities = replace(keeping.capabilities, durable=True)
    found = [Member(name, keeping) for name in "abc"] + members("x", "y")
    placement = Placement([make_group("g", found, copies=2)])
    beside = 0
    for partition in SOME:
        place = placement.of(partition)
        names = [member.name for member in place.rightful]
        assert sum(name in "abc" for name in names) == 2
        assert names == order(placement, partition)[: len(names)]
        beside += len(names) - 2
    assert 0.9 < beside / len(SOME) < 1.1  # each comes before the second of three half the time


def test_copies_are_by_default_as_many_as_servers_that_are_durable():
    keeping = MemoryStore()
    keeping.capabilities = replace(keeping.capabilities, durable=True)
    group = make_group("g", [Member("a", keeping), Member("b", STORE)])
    assert (group.copies, group.write_copies, group.min_copies) == (1, 1, 1)


def test_numbers_of_copies_that_can_not_be_kept_are_refused():
    for wrong in ({"copies": 3}, {"write_copies": 2, "copies": 1}, {"min_copies": 0}):
        with pytest.raises(BadSetting, match="min_copies"):
            make_group("g", members("a", "b"), volatile=True, **wrong)


def test_a_group_of_nothing_durable_must_be_asked_for():
    with pytest.raises(BadSetting, match="no durable server"):
        make_group("g", members("a"))
