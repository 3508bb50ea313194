"""The bound on the bytes of all transfers, and what cancelled ones leave of it."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest

from dolmen.cluster.budget import Budget


async def test_who_asks_for_more_waits_and_is_served_in_order() -> None:
    budget, served = Budget(10), list[str]()

    async def take(who: str, size: int) -> None:
        await budget.take(size)
        served.append(who)

    await budget.take(10)
    waiting = [asyncio.create_task(take("large", 8)), asyncio.create_task(take("small", 1))]
    await asyncio.sleep(0)
    budget.give(5)
    await asyncio.sleep(0)
    assert served == []
    assert not budget.lend("", 1, list)
    budget.give(5)
    await asyncio.gather(*waiting)
    assert served == ["large", "small"]
    assert budget.free == 1


async def test_what_is_lent_is_dropped_as_soon_as_somebody_waits_for_it() -> None:
    budget, recalled = Budget(10), list[str]()
    for key in ("first", "second", "settled", "third"):
        assert budget.lend(key, 2, partial(recalled.append, key))
    assert not budget.lend("too much", 3, list)
    budget.settle("settled")
    await budget.take(7)
    assert recalled == ["first", "second"]
    for key in ("first", "third"):
        budget.settle(key)
    budget.give(7)
    assert budget.free == 10


async def test_one_that_is_cancelled_lets_those_behind_it_go_on() -> None:
    budget = Budget(10)
    await budget.take(5)
    large, small = asyncio.create_task(budget.take(8)), asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    large.cancel()
    async with asyncio.timeout(10):
        await small
    assert budget.free == 4


@pytest.mark.parametrize("seed", range(50))
async def test_nothing_is_lost_or_made_however_takers_are_cancelled(seed: int) -> None:
    chance, budget, held = random.Random(seed), Budget(20), list[int]()

    async def take(size: int) -> None:
        await budget.take(size)
        held.append(size)

    takers, lent = [], dict[int, int]()
    for number in range(200):
        act = chance.randrange(6)
        if act == 0:
            takers.append(asyncio.create_task(take(chance.randrange(1, 21))))
        elif act == 1 and takers:
            chance.choice(takers).cancel()
        elif act == 2 and held:
            budget.give(held.pop(chance.randrange(len(held))))
        elif act == 3:
            size = chance.randrange(1, 21)
            if budget.lend(number, size, partial(lent.pop, number)):
                lent[number] = size
        elif act == 4 and lent:
            key = chance.choice([*lent])
            del lent[key]
            budget.settle(key)
        else:
            await asyncio.sleep(0)
        assert 0 <= budget.free <= budget.size
    for taker in takers:
        taker.cancel()
    await asyncio.gather(*takers, return_exceptions=True)
    assert budget.free + sum(held) + sum(lent.values()) == budget.size
