"""How a command ends: the exit status of an error, and the line that tells of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from typing import TypeVar

import typer

from dolmen import errors
from dolmen.stores.secrets import without_secrets

T = TypeVar("T")

FAILED, USAGE, NOT_FOUND, UNAVAILABLE, DAMAGED = 1, 2, 3, 4, 5

_STATUS: list[tuple[type[Exception], int]] = [
    (errors.BadSetting, USAGE),
    (errors.InvalidName, USAGE),
    (errors.NotFound, NOT_FOUND),
    (errors.Unavailable, UNAVAILABLE),
    (errors.OutcomeUnknown, UNAVAILABLE),
    (errors.Corrupt, DAMAGED),
    (errors.BadContent, DAMAGED),
    (errors.DolmenError, FAILED),
    (OSError, FAILED),
]


def status_of(error: Exception) -> int | None:
    """The exit status an error stands for; None for one that nobody foresaw."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), None)


def tell(error: Exception, about: str = "") -> None:
    """One line on stderr."""
    text = str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
        about = "" if about == error.filename else about
    text = without_secrets(" ".join(f"{about}{': ' if about else ''}{text}".split()))
    print(f"dolmen: {text}", file=sys.stderr, flush=True)


def run(work: Coroutine[object, object, T]) -> T:
    """Run a command's coroutine. A signal cancels it, and it cleans up.

    After Ctrl-C typer exits with 130, after SIGTERM the program dies of that.
    """
    import asyncio

    import uvloop

    ended: list[T] = []
    told: list[signal.Signals] = []

    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            told.append(number)
            task.cancel()

        # Between two callbacks; the runner's own handler would cancel in the midst of one.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        with contextlib.suppress(asyncio.CancelledError):
            ended.append(await work)

    try:
        uvloop.run(main())
    except BrokenPipeError:
        seen_enough()
        raise typer.Exit(0) from None
    if not ended:
        if signal.SIGTERM in told:
            sys.stdout.flush()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt
    return ended[0]


def seen_enough() -> None:
    """Whoever read our output has gone (`dolmen ls | head`): let nothing complain of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
