"""How a command ends: the exit status of an error, the line that tells of it, and signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from dolmen import errors
from dolmen.stores.secrets import without_secrets

FAILED, USAGE, NOT_FOUND, UNAVAILABLE, DAMAGED = 1, 2, 3, 4, 5

_STATUS: dict[type[Exception], int] = {
    errors.BadSetting: USAGE,
    errors.InvalidName: USAGE,
    errors.NotFound: NOT_FOUND,
    errors.Unavailable: UNAVAILABLE,
    errors.OutcomeUnknown: UNAVAILABLE,
    errors.Corrupt: DAMAGED,
    errors.BadContent: DAMAGED,
    errors.DolmenError: FAILED,
    OSError: FAILED,
}
"""The first that fits counts."""


def status_of(error: Exception) -> int | None:
    """The exit status an error stands for; None for one that nobody foresaw."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), None)


def tell(error: Exception, about: str = "") -> None:
    """One line on stderr."""
    text = str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
        about = "" if about == error.filename else about
    text = without_secrets(" ".join(f"{about}{': ' if about else ''}{text}".split()))
    print(f"dolmen: {text}", file=sys.stderr, flush=True)


async def for_each(items: Sequence[str], work: Callable[[str], Awaitable[None]]) -> int:
    """Do the same for each; one that fails does not stop the others. Returns the worst status."""
    worst = 0
    for item in items:
        try:
            await work(item)
        except BrokenPipeError:
            raise
        except Exception as error:
            status = status_of(error)
            if status is None:
                raise
            tell(error, item)
            worst = max(worst, status)
    return worst


def run_on_loop(work: Coroutine[object, object, int | None]) -> int | None:
    """Run a command's coroutine; returns its status. A signal cancels it, and it cleans up.

    After Ctrl-C the program exits with 130, after SIGTERM it dies of that.
    """
    import asyncio

    import uvloop

    caught: list[signal.Signals] = []

    async def main() -> int | None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            caught.append(number)
            task.cancel()

        # Between two callbacks; the runner's own handler would cancel in the midst of one.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await work

    try:
        return uvloop.run(main())
    except asyncio.CancelledError:
        if signal.SIGTERM in caught:
            sys.stdout.flush()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt from None


def seen_enough() -> None:
    """Whoever read our output has gone (`dolmen ls | head`): let nothing complain of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
