"""Members that fail, or are full, are asked last; and what is answered meanwhile stays true."""

import pytest

from dolmen.cluster.breaker import FAILURES, FULL_REST, HANGS, REST, ROUNDS
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.errors import Full, NoCopies, NotFound, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.store import Condition, Write
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore


class Time:
    """Seconds that go by only when a test lets them."""

    def __init__(self):
        self.passed = 0.0

    def __call__(self):
        return self.passed


def made(count=3, **numbers):
    """A cluster, its stores in the order in which "name" is placed, and its time."""
    now = Time()
    members = [Member(f"m{number}", FaultyStore(MemoryStore())) for number in range(count)]
    cluster = Cluster([make_group("g", members, volatile=True, **numbers)], now=now)
    order = cluster.placement.of(partition_of("name")).order
    return cluster, [member.store for member in order], [*order], now


def asked(store, method):
    """How often, and forget it."""
    count = sum(1 for called, _ in store.calls if called == method)
    store.calls.clear()
    return count


async def made_with_one_resting(count=3, *, hangs=False, **numbers):
    cluster, stores, order, now = made(count, min_copies=numbers.pop("min_copies", 1), **numbers)
    stores[0].down = True
    if hangs:

        async def hang(_method, _name):
            now.passed += HANGS

        stores[0].pause = hang
    for _ in range(FAILURES):
        await cluster.writer.put(Write("name", Bytes(b"data")))
    stores[0].down = False
    stores[0].pause = None
    assert cluster.breaker.state(order[0]) == "failing"
    for store in stores:
        store.calls.clear()
    return cluster, stores, order, now


async def test_who_failed_often_enough_is_not_waited_for_until_its_rest_is_over():
    cluster, stores, order, now = await made_with_one_resting(write_copies=2)
    for _ in range(3):
        await cluster.get("name")
        await cluster.stat("name")
        await cluster.writer.put(Write("name", Bytes(b"data")))
    assert stores[0].calls == []
    cluster.breaker.rounds += ROUNDS
    now.passed += REST - 1
    await cluster.get("name")
    assert stores[0].calls == []
    now.passed += 1
    await cluster.get("name")
    assert asked(stores[0], "get") == 1
    assert cluster.breaker.state(order[0]) == "ok"


async def test_after_its_rest_one_request_tries_it_and_the_others_wait_for_its_answer():
    cluster, stores, order, now = await made_with_one_resting()
    now.passed += REST
    cluster.breaker.rounds += ROUNDS
    stores[0].script("get", Fault.UNAVAILABLE)
    await cluster.get("name")
    for _ in range(3):
        await cluster.get("name")
    assert asked(stores[0], "get") == 1
    now.passed += REST
    cluster.breaker.rounds += ROUNDS
    await cluster.get("name")
    assert cluster.breaker.state(order[0]) == "ok"


@pytest.mark.parametrize("fault", [Unavailable("down"), OutcomeUnknown("silent")])
async def test_only_failures_in_a_row_count(fault):
    cluster, stores, order, _now = made(write_copies=2)
    for _ in range(3):
        stores[0].script("put", *[fault] * (FAILURES - 1))
        for _ in range(FAILURES):
            await cluster.writer.put(Write("name", Bytes(b"data")))
    assert cluster.breaker.state(order[0]) == "ok"
    assert not cluster.breaker.troubles
    for _ in range(2 * FAILURES):
        with pytest.raises(NotFound):
            await cluster.get("absent")
    assert not cluster.breaker.troubles


async def test_an_upload_tries_who_rests_before_it_fails():
    cluster, stores, _order, _now = await made_with_one_resting(2)
    stores[1].down = True
    assert (await cluster.writer.put(Write("name", Bytes(b"data")))).copies == 1
    assert asked(stores[0], "put") == 1
    stores[0].down = True
    with pytest.raises(NoCopies) as raised:
        await cluster.writer.put(Write("name", Bytes(b"data")))
    assert len(raised.value.failures) == 2


async def test_an_upload_tries_who_rests_for_the_copies_that_are_wanted():
    cluster, _stores, order, _now = await made_with_one_resting(2, write_copies=2)
    assert (await cluster.writer.put(Write("name", Bytes(b"data")))).copies == 2
    assert cluster.breaker.state(order[0]) == "behind"


async def test_an_upload_of_enough_copies_does_not_wait_for_who_hangs():
    cluster, stores, _order, _now = await made_with_one_resting(2, hangs=True, write_copies=2)
    assert (await cluster.writer.put(Write("name", Bytes(b"data")))).copies == 1
    assert stores[0].calls == []


async def test_when_all_others_say_no_one_that_fails_at_once_is_asked_all_the_same():
    cluster, stores, order, _now = await made_with_one_resting()
    with pytest.raises(NotFound):
        await cluster.get("absent")
    assert asked(stores[0], "get") == 1
    assert cluster.breaker.state(order[0]) == "behind"
    cluster, stores, _order, _now = await made_with_one_resting()
    await calls.put(stores[0].store, "other", Bytes(b"data"))
    assert (await cluster.stat("other")).size == 4


async def test_when_all_others_say_no_the_answer_is_not_known_and_nobody_waits_for_who_hangs():
    cluster, stores, _order, _now = await made_with_one_resting(hangs=True)
    for ask in (cluster.get, cluster.stat):
        with pytest.raises(Unavailable, match="skipped for a while"):
            await ask("absent")
    assert stores[0].calls == []


async def test_a_read_that_another_failed_asks_who_rests():
    cluster, stores, _order, _now = await made_with_one_resting(2)
    stores[1].script("get", Fault.CORRUPT)
    stores[0].script("get", None)
    await calls.put(stores[0].store, "name", Bytes(b"data"))
    await cluster.get("name")
    assert ("get", "name") in stores[0].calls


async def test_when_all_rest_all_are_asked():
    cluster, stores, order, _now = made(2)
    for store in stores:
        store.down = True
    for _ in range(FAILURES):
        with pytest.raises(Unavailable):
            await cluster.get("name")
    assert [cluster.breaker.state(member) for member in order] == ["failing"] * 2
    for store in stores:
        store.down = False
    with pytest.raises(NotFound):
        await cluster.get("name")


async def test_deletes_go_to_everyone_all_the_same():
    cluster, stores, order, _now = await made_with_one_resting()
    await calls.delete(cluster, "name")
    assert all(asked(store, "delete") for store in stores)
    assert cluster.breaker.state(order[0]) == "behind"


@pytest.mark.parametrize("refusal", [Full("no room"), ReadOnly("the disk failed")])
async def test_who_is_full_is_written_to_last_and_serves_reads_and_deletes(refusal):
    cluster, stores, order, now = made(write_copies=2)
    await cluster.writer.put(Write("name", Bytes(b"data")))
    for _ in range(FAILURES):
        stores[0].script("put", refusal)
        assert (await cluster.writer.put(Write("name", Bytes(b"data")))).copies == 2
    assert asked(stores[0], "put") == 2  # the first time it had room, the second it had not
    assert cluster.breaker.state(order[0]) == "full"
    await cluster.get("name")
    assert asked(stores[0], "get") == 1
    await calls.delete(cluster, "name")
    assert asked(stores[0], "delete") == 1
    assert cluster.breaker.state(order[0]) == "full"
    now.passed += FULL_REST
    stores[0]._script.clear()
    await cluster.writer.put(Write("name", Bytes(b"data")))
    assert asked(stores[0], "put") == 1
    assert not cluster.breaker.troubles


async def test_who_says_that_it_takes_no_writes_is_written_to_last(monkeypatch):
    cluster, stores, order, _now = made(write_copies=2)

    async def condition():
        return Condition(writable=False)

    monkeypatch.setattr(stores[0], "condition", condition)
    await cluster.condition()
    assert cluster.breaker.state(order[0]) == "full"
    await cluster.writer.put(Write("name", Bytes(b"data")))
    assert asked(stores[0], "put") == 0
    monkeypatch.undo()
    await cluster.condition()
    assert not cluster.breaker.troubles


async def test_the_full_are_asked_when_nobody_else_has_room():
    cluster, stores, _order, _now = made(2, write_copies=2)
    for store in stores:
        store.script("put", Full("no room"))
    with pytest.raises(NoCopies, match="no room"):
        await cluster.writer.put(Write("name", Bytes(b"data")))
    assert (await cluster.writer.put(Write("name", Bytes(b"data")))).copies == 2


async def test_a_request_that_is_cancelled_does_not_leave_the_server_alone_for_ever():
    cluster, stores, order, now = await made_with_one_resting()
    now.passed += REST
    cluster.breaker.rounds += ROUNDS
    trying = cluster.breaker.reading(order, [])
    assert next(trying) is order[0]  # and nothing is ever said of how it went
    now.passed += REST
    await cluster.get("name")
    assert asked(stores[0], "get") == 1


async def test_a_server_that_missed_a_delete_is_read_last_until_repair_has_compared_it():
    cluster, stores, order, _now = made(2, write_copies=2)
    await cluster.writer.put(Write("name", Bytes(b"data")))
    stores[0].down = True
    await calls.delete(cluster, "name")
    stores[0].down = False
    for rounds in range(ROUNDS):
        cluster.breaker.rounds = rounds
        assert cluster.breaker.state(order[0]) == "behind"
        for ask in (cluster.get, cluster.stat):
            with pytest.raises(NotFound):  # its copy is older than the tombstone of the other
                await ask("name")
    await calls.delete(stores[0], "name", stamp=(1 << 63))  # as repair does
    cluster.breaker.rounds = ROUNDS
    assert cluster.breaker.state(order[0]) == "ok"
    stores[0].calls.clear()
    with pytest.raises(NotFound):
        await cluster.get("name")
    assert stores[0].calls[0] == ("get", "name")
    assert not cluster.breaker.troubles


async def test_what_only_a_server_behind_has_is_read_from_it():
    cluster, stores, _order, _now = made(2)
    await calls.put(stores[0], "name", Bytes(b"data"))
    stores[0].down = True
    await calls.delete(cluster, "other")
    stores[0].down = False
    stores[1].down = True
    assert (await cluster.get("name")).info.size == 4


async def test_repair_that_counts_anew_is_waited_for_all_the_same():
    cluster, _stores, order, _now = made()
    cluster.breaker.rounds = 100
    cluster.breaker.missed(order[0].name)
    cluster.breaker.rounds = 1
    assert cluster.breaker.state(order[0]) == "behind"
    cluster.breaker.rounds = 1 + ROUNDS
    assert cluster.breaker.state(order[0]) == "ok"
