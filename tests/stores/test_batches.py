"""Requests go to the server together, and each gets its own answer."""

import asyncio

import pytest

from dolmen.errors import Full, Unavailable
from dolmen.stores.batches import Batches


class Work:
    """Doubles numbers when it is let; `full` is refused with all that came with it."""

    def __init__(self, *, at_once: int = 1, most: int = 3, patience: float | None = None) -> None:
        self.batches = Batches(self.work, at_once=at_once, most=most, patience=patience)
        self.let = asyncio.Event()
        self.let.set()
        self.seen: list[list[int]] = []
        self.full = -1

    async def work(self, numbers):
        self.seen.append(list(numbers))
        await self.let.wait()
        if self.full in numbers:
            raise Full("no room")
        return [number * 2 if number else Unavailable("nothing") for number in numbers]


async def test_questions_of_one_turn_go_together_up_to_the_most() -> None:
    work = Work()
    assert await asyncio.gather(*map(work.batches.ask, range(1, 6))) == [2, 4, 6, 8, 10]
    assert work.seen == [[1, 2, 3], [4, 5]]


async def test_what_is_left_of_a_full_batch_begins_at_once() -> None:
    work = Work(at_once=2)
    work.let.clear()
    answers = [work.batches.ask(number) for number in range(1, 6)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert work.seen == [[1, 2, 3], [4, 5]]
    work.let.set()
    assert await asyncio.gather(*answers) == [2, 4, 6, 8, 10]


async def test_no_more_batches_are_under_way_than_may_be() -> None:
    work = Work(at_once=2)
    work.let.clear()
    answers = [work.batches.ask(1)]
    for number in (2, 3, 4):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answers.append(work.batches.ask(number))
    assert work.seen == [[1], [2]]
    work.let.set()
    assert await asyncio.gather(*answers) == [2, 4, 6, 8]
    assert work.seen == [[1], [2], [3, 4]]


async def test_whoever_was_answered_may_ask_again_at_once() -> None:
    work = Work()
    for number in range(1, 20):
        assert await asyncio.wait_for(work.batches.ask(number), 5) == number * 2


async def test_each_gets_its_own_error() -> None:
    work = Work()
    answers = await asyncio.gather(*map(work.batches.ask, (1, 0, 2)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["2", "nothing", "4"]


async def test_one_for_which_there_is_no_room_holds_up_no_other() -> None:
    work = Work()
    work.full = 2
    answers = await asyncio.gather(*map(work.batches.ask, (1, 2, 3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["2", "no room", "6"]
    assert work.seen == [[1, 2, 3], [1], [2], [3]]


async def test_one_who_gave_up_is_left_out() -> None:
    work = Work()
    first, second = map(work.batches.ask, (1, 2))
    first.cancel()
    assert await second == 4
    assert work.seen == [[2]]


async def test_a_batch_that_takes_long_holds_up_others_for_so_long_only() -> None:
    work = Work(patience=0.001)
    work.let.clear()
    answers = []
    async with asyncio.timeout(10):
        for number in (1, 2, 3):
            answers.append(work.batches.ask(number))
            while len(work.seen) < number:
                await asyncio.sleep(0.001)
    assert work.seen == [[1], [2], [3]]
    work.let.set()
    assert await asyncio.gather(*answers) == [2, 4, 6]
    work.let.clear()
    answers = [work.batches.ask(number) for number in (4, 5, 6, 7)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert work.seen[3:] == [[4, 5, 6]]  # as many at once as before
    work.let.set()
    assert await asyncio.gather(*answers) == [8, 10, 12, 14]
    await work.batches.aclose()


async def test_closing_answers_what_was_asked_and_takes_no_more() -> None:
    work = Work()
    answers = [work.batches.ask(number) for number in range(1, 6)]
    await work.batches.aclose()
    assert [answer.result() for answer in answers] == [2, 4, 6, 8, 10]
    with pytest.raises(Unavailable, match="closed"):
        work.batches.ask(1)
