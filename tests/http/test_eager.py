"""Coroutines run without a task end, fail and are cancelled as in one."""

import asyncio

import pytest

from dolmen.http.eager import EagerRun


def run(coro):
    """Run a coroutine eagerly; returns the run, and a future with (result, error)."""
    ended = asyncio.get_running_loop().create_future()
    results = []

    async def kept():
        results.append(await coro)

    running = EagerRun(kept(), lambda error: ended.set_result((*results, error)))
    running.step()
    return running, ended


async def test_it_goes_on_whenever_what_it_waits_for_is_there() -> None:
    loop = asyncio.get_running_loop()

    async def waits(times):
        got = []
        for number in range(times):
            future = loop.create_future()
            loop.call_soon(future.set_result, number)
            got.append(await future)
        return got

    _, ended = run(waits(3))
    assert await ended == ([0, 1, 2], None)


async def test_an_error_in_what_it_waits_for_is_raised_in_it() -> None:
    loop = asyncio.get_running_loop()

    async def mends():
        future = loop.create_future()
        loop.call_soon(future.set_exception, ValueError("x"))
        try:
            await future
        except ValueError as error:
            return str(error)

    _, ended = run(mends())
    assert await ended == ("x", None)


async def test_what_it_raises_is_handed_on() -> None:
    async def fails(task):
        await (asyncio.sleep(0) if task else asyncio.sleep(0.001))
        raise ValueError("x")

    for task in (True, False):
        _, ended = run(fails(task))
        [error] = await ended
        assert isinstance(error, ValueError)


@pytest.mark.parametrize("bare", [True, False])
async def test_cancelling_raises_at_what_it_waits_for_and_waits_for_the_cleaning_up(bare) -> None:
    seen = []

    async def cleans():
        if bare:
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            seen.append("cleaned")
            raise

    running, ended = run(cleans())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    [error] = await ended
    assert isinstance(error, asyncio.CancelledError)
    assert seen == ["cleaned"]


async def test_cancelling_one_whose_wait_is_just_over_is_not_lost() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    async def waits():
        await future
        await asyncio.Event().wait()

    running, ended = run(waits())
    future.set_result(None)
    running.cancel()
    [error] = await asyncio.wait_for(ended, 10)
    assert isinstance(error, asyncio.CancelledError)


async def test_after_a_bare_yield_it_has_a_task() -> None:
    async def asks():
        await asyncio.sleep(0.001)
        assert asyncio.current_task() is None
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            return asyncio.current_task() is not None

    _, ended = run(asks())
    assert await ended == (True, None)
