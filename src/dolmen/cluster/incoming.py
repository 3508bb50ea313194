"""The chunks of a body as it arrives, in memory while there is room and in a file when not.

A chunk in progress holds as many bytes of the budget as have come. When half of the
budget is held, what has come goes to an unlinked temporary file and the rest of the
chunk follows it there: however many clients are slow, they hold up nobody else. A chunk
that is complete takes its turn for the budget and is read back.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

from dolmen.buffers import Buffers
from dolmen.cluster.budget import Budget
from dolmen.cluster.manifest import CHUNK
from dolmen.payload import CHUNKS
from dolmen.spool import Spool

_STEP = 1 << 20
"""In memory a chunk grows by this many bytes, through a file by a quarter of them."""
_steps = Buffers(_STEP // 4, spare=8)
_NOTHING = memoryview(b"")


class Source(Protocol):
    """A body: `length` is in bytes, None when it is not known beforehand."""

    length: int | None

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes; less only at its end, 0 after it."""
        ...


class Chunk:
    """Bytes of a body, held in memory and counted in the budget until `release`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._room = CHUNKS.take()
        self._held = 0
        self.size = 0

    @property
    def data(self) -> memoryview:
        """The bytes."""
        return self._room[: self.size]

    async def fill(self, source: Source) -> None:
        """Receive up to a chunk's size."""
        while self.size < CHUNK:
            step = min(_STEP, CHUNK - self.size)
            if not self._budget.try_keep(step):
                await self._fill_by_file(source)
                return
            self._held += step
            got = await source.receive_into(self._room[self.size : self.size + step])
            self.size += got
            if got < step:
                return

    async def _fill_by_file(self, source: Source) -> None:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, None)
        spool = await in_thread(Spool)
        await in_thread(spool.append, self.data)
        self._let_go()
        step = _steps.take()
        while spool.size < CHUNK:
            wanted = min(len(step), CHUNK - spool.size)
            got = await source.receive_into(step[:wanted])
            await in_thread(spool.append, step[:got])
            if got < wanted:
                break
        await self._budget.take(spool.size)
        self._held = spool.size
        self._room = CHUNKS.take()
        await in_thread(spool.read, 0, self._room)
        self.size = spool.size

    def release(self) -> None:
        """Give the budget back, once. Who still uses the data may go on with it."""
        self._let_go()
        self.size = 0

    def _let_go(self) -> None:
        self._budget.give(self._held)
        self._held = 0
        self._room = _NOTHING
