"""How long a server that does not answer is waited for, and when it counts as failing."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from dolmen.closing import closing
from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.store import BlobInfo, BlobStore, Listing

TRIES = 5
"""Attempts in a row that bring nothing before a server counts as failing."""
FIRST_PAUSE = 0.25
"""Seconds before the second attempt; doubled before each one after."""
LONGEST = 60.0
"""Seconds after which a question that brought nothing is not asked again: who hangs, hangs on."""

PASSING = (Unavailable, OutcomeUnknown)
"""Errors worth another attempt. Writes here carry stamps, so repeating one is harmless."""

Pause = Callable[[float], Awaitable[object]]
"""Waits that many seconds: `asyncio.sleep`, or a test's own."""

Side = Literal["source", "destination"]

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - it ends a run, and never leaves this package
    """A server failed for good; `side` says which of two, or `who` which of many."""

    def __init__(self, error: DolmenError, side: Side) -> None:
        super().__init__(str(error))
        self.error = error
        self.side = side
        self.who = ""


class Patience:
    """Counts attempts in a row that brought nothing."""

    def __init__(self, pause: Pause, longest: float = math.inf) -> None:
        self._pause, self._longest = pause, longest
        self.renew()

    def renew(self) -> None:
        """Something came of the last attempt."""
        self._failed, self._since = 0, time.monotonic()

    async def again(self) -> bool:
        """Wait before another attempt and return True; False when there have been enough."""
        self._failed += 1
        if self._failed >= TRIES or time.monotonic() - self._since >= self._longest:
            return False
        await self._pause(FIRST_PAUSE * 2 ** (self._failed - 1))
        return True


async def ask(question: Callable[[], Awaitable[T]], *, side: Side, pause: Pause) -> T:
    """The answer to an idempotent question, asked until it comes; raises `Stopped`."""
    patience = Patience(pause, LONGEST)
    while True:
        try:
            return await question()
        except DolmenError as error:
            if not isinstance(error, PASSING) or not await patience.again():
                raise Stopped(error, side) from error


async def listing(
    store: BlobStore, partitions: Sequence[int], *, prefix: str = "", side: Side, pause: Pause
) -> AsyncIterator[BlobInfo]:
    """List what stands, tombstones too, going on where a listing broke off; raises `Stopped`."""
    last: str | None = None
    patience = Patience(pause, LONGEST)
    while True:
        try:
            async with closing(_rest(store, partitions, last, prefix)) as rest:
                async for info in rest:
                    last = info.name
                    yield info
                    patience.renew()
        except DolmenError as error:
            if not isinstance(error, PASSING) or not await patience.again():
                raise Stopped(error, side) from error
        else:
            return


def _rest(
    store: BlobStore, partitions: Sequence[int], last: str | None, prefix: str
) -> AsyncIterator[BlobInfo]:
    if last is not None:
        reached = partition_of(last)
        partitions = [partition for partition in partitions if partition >= reached]
    return store.list(Listing(partitions, last, prefix, tombstones=True))
