"""Work in the background is repeated, and stops when it is closed."""

import asyncio
from contextlib import suppress

from dolmen.repeating import Repeating


async def test_the_work_is_repeated_after_the_seconds_it_returns():
    done, times = asyncio.Event(), 0

    async def work():
        nonlocal times
        times += 1
        if times == 3:
            done.set()
            return 3600
        return 0

    repeating = Repeating(work)
    await done.wait()
    await repeating.aclose()
    assert times == 3


async def test_closed_before_its_first_time_it_does_nothing():
    async def work():
        raise AssertionError

    repeating = Repeating(work, wait=3600)
    await asyncio.sleep(0)
    await repeating.aclose()


async def test_it_ends_when_the_work_drops_the_cancellation():
    begun = asyncio.Event()

    async def work():
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 3600

    repeating = Repeating(work)
    await begun.wait()
    async with asyncio.timeout(5):
        await repeating.aclose()
