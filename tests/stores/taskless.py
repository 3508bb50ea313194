"""Running a coroutine without a task, as the HTTP server does with its handlers."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def taskless(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that is stepped by callbacks alone."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def step() -> None:
        try:
            assert asyncio.current_task() is None
            waits_for = coroutine.send(None)
        except StopIteration as end:
            done.set_result(end.value)
        except BaseException as error:  # noqa: BLE001 - handed on
            done.set_exception(error)
        else:
            if waits_for is None:
                loop.call_soon(step)
            else:
                waits_for._asyncio_future_blocking = False
                waits_for.add_done_callback(lambda _: step())

    loop.call_soon(step)
    return await done
