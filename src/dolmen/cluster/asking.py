"""Asking several members at once, and telling of those that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from dolmen.cluster.groups import Member
from dolmen.errors import DolmenError, NotFound, Unavailable

Failures = list[tuple[str, DolmenError]]
"""Members by name, and how they failed."""
T = TypeVar("T")


async def each(
    members: Sequence[Member], ask: Callable[[Member], Awaitable[T]]
) -> tuple[list[T], Failures]:
    """Ask all at once; the answers, and who failed."""
    answers: list[T] = []
    failures: Failures = []

    async def one(member: Member) -> None:
        try:
            answers.append(await ask(member))
        except DolmenError as error:
            failures.append((member.name, error))

    await together([one(member) for member in members])
    return answers, failures


async def together(coroutines: Sequence[Awaitable[None]]) -> None:
    """Run all at once; when one raises, or the caller is cancelled, none goes on behind."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fail(what: str, failures: Failures) -> None:
    """Raise for members that failed; `NotFound` when all of them said so."""
    if failures and all(isinstance(error, NotFound) for _, error in failures):
        raise failures[0][1]
    raise Unavailable(f"{what} ({told(failures)})")


def told(failures: Failures) -> str:
    """What the members that failed said, in one line."""
    return "; ".join(f"{member}: {error}" for member, error in failures)
