"""Members that fail, or are full, are asked last; and what is answered meanwhile stays true.

`test_answers` tries every mix of members and of what the breaker thinks of them; here is how it
comes to think so, and what is not asked.
"""

import pytest

from cluster.conftest import Time, asked, in_order, made
from dolmen.cluster.breaker import FAILURES, FULL_REST, HANGS, REST, ROUNDS
from dolmen.errors import Full, NotFound, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.store import Condition, Write
from dolmen.testing import calls
from dolmen.testing.faulty import Fault


class Setting:
    """A cluster with its stores and members in the order in which "name" is placed."""

    def __init__(self, count=3, **numbers):
        self.now = Time()
        _, self.cluster = made(count, now=self.now, **numbers)
        self.stores = in_order(self.cluster, "name")
        self.first = self.stores[0]

    def put(self):
        return self.cluster.writer.put(Write("name", Bytes(b"data")))

    def state(self, number=0):
        """What the breaker thinks of a member."""
        order = self.cluster.placement.of(partition_of("name")).order
        return self.cluster.breaker.state(order[number])

    def repaired(self):
        """Let enough rounds of repair end well."""
        self.cluster.breaker.rounds += ROUNDS

    async def let_first_rest(self, *, hangs=False):
        """Have the first member fail until it is not asked any more; it is up again then."""

        async def hang(_method, _name):
            self.now.passed += HANGS

        self.first.down = True
        self.first.pause = hang if hangs else None
        for _ in range(FAILURES):
            await self.put()
        self.first.down = False
        self.first.pause = None
        assert self.state() == "failing"
        for store in self.stores:
            store.calls.clear()


async def test_who_failed_often_enough_is_not_waited_for_until_its_rest_is_over():
    trial = Setting(write_copies=2)
    await trial.let_first_rest()
    for _ in range(3):
        await trial.cluster.get("name")
        await trial.cluster.stat("name")
        await trial.put()
    trial.repaired()
    trial.now.passed += REST - 1
    await trial.cluster.get("name")
    assert trial.first.calls == []
    trial.now.passed += 1
    await trial.cluster.get("name")
    assert asked(trial.first, "get") == 1
    assert trial.state() == "ok"


async def test_after_its_rest_one_request_tries_it_and_the_others_wait_for_its_answer():
    trial = Setting()
    await trial.let_first_rest()
    trial.now.passed += REST
    trial.repaired()
    trial.first.script("get", Fault.UNAVAILABLE)
    for _ in range(4):
        await trial.cluster.get("name")
    assert asked(trial.first, "get") == 1
    trial.now.passed += REST
    trial.repaired()
    # One that is cancelled says nothing of how it went, and leaves it alone no longer than that.
    order = trial.cluster.placement.of(partition_of("name")).order
    assert next(trial.cluster.breaker.reading(order, [])) is order[0]
    await trial.cluster.get("name")
    assert asked(trial.first, "get") == 0
    trial.now.passed += REST
    await trial.cluster.get("name")
    assert asked(trial.first, "get") == 1
    assert trial.state() == "ok"


@pytest.mark.parametrize("fault", [Unavailable("down"), OutcomeUnknown("silent")])
async def test_only_failures_in_a_row_count(fault):
    trial = Setting(write_copies=2)
    for _ in range(3):
        trial.first.script("put", *[fault] * (FAILURES - 1))
        for _ in range(FAILURES):
            await trial.put()
    for _ in range(2 * FAILURES):
        with pytest.raises(NotFound):
            await trial.cluster.get("absent")
    assert not trial.cluster.breaker.troubles


@pytest.mark.parametrize("hangs", [False, True])
async def test_who_rests_is_asked_for_the_copies_that_are_wanted_unless_it_hangs(hangs):
    trial = Setting(2, write_copies=2)
    await trial.let_first_rest(hangs=hangs)
    assert (await trial.put()).copies == (1 if hangs else 2)
    assert asked(trial.first, "put") == (not hangs)
    assert trial.state() == ("failing" if hangs else "behind")


@pytest.mark.parametrize("hangs", [False, True])
async def test_when_all_others_say_no_who_rests_is_asked_unless_it_hangs(hangs):
    trial = Setting()
    await trial.let_first_rest(hangs=hangs)
    for ask in (trial.cluster.get, trial.cluster.stat):
        with pytest.raises(Unavailable if hangs else NotFound):
            await ask("absent")
    assert (trial.first.calls == []) is hangs


@pytest.mark.parametrize("refusal", [Full("no room"), ReadOnly("the disk failed")])
async def test_who_is_full_is_written_to_last_and_serves_reads_and_deletes(refusal):
    trial = Setting(write_copies=2)
    await trial.put()
    for _ in range(FAILURES):
        trial.first.script("put", refusal)
        assert (await trial.put()).copies == 2
    assert asked(trial.first, "put") == 2  # the first time it had room, the second it had not
    await trial.cluster.get("name")
    assert asked(trial.first, "get") == 1
    await calls.delete(trial.cluster, "name")
    assert asked(trial.first, "delete") == 1
    assert trial.state() == "full"
    trial.now.passed += FULL_REST
    trial.first._script.clear()
    await trial.put()
    assert asked(trial.first, "put") == 1
    assert not trial.cluster.breaker.troubles


async def test_who_says_that_it_takes_no_writes_is_written_to_last(monkeypatch):
    trial = Setting(write_copies=2)

    async def condition():
        return Condition(writable=False)

    monkeypatch.setattr(trial.first, "condition", condition)
    await trial.cluster.condition()
    assert trial.state() == "full"
    await trial.put()
    assert asked(trial.first, "put") == 0
    monkeypatch.undo()
    await trial.cluster.condition()
    assert not trial.cluster.breaker.troubles


async def test_a_server_that_missed_a_delete_is_read_last_until_repair_has_compared_it():
    trial = Setting(2, write_copies=2)
    await trial.put()
    trial.first.down = True
    await calls.delete(trial.cluster, "name")
    trial.first.down = False
    for rounds in range(ROUNDS):
        trial.cluster.breaker.rounds = rounds
        assert trial.state() == "behind"
        for ask in (trial.cluster.get, trial.cluster.stat):
            with pytest.raises(NotFound):  # its copy is older than the tombstone of the other
                await ask("name")
    await calls.delete(trial.first, "name", stamp=(1 << 63))  # as repair does
    trial.cluster.breaker.rounds = ROUNDS
    assert trial.state() == "ok"
    trial.first.calls.clear()
    with pytest.raises(NotFound):
        await trial.cluster.get("name")
    assert trial.first.calls[0] == ("get", "name")
    assert not trial.cluster.breaker.troubles


async def test_repair_that_counts_anew_is_waited_for_all_the_same():
    trial = Setting()
    breaker = trial.cluster.breaker
    breaker.rounds = 100
    breaker.missed(trial.cluster.placement.of(partition_of("name")).order[0].name)
    for rounds, state in ((1, "behind"), (1 + ROUNDS, "ok")):
        breaker.rounds = rounds
        assert trial.state() == state
