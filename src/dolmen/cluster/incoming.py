"""The chunks of a body as it arrives, in memory while there is room and in a file when not.

A chunk in progress holds as many bytes of the budget as have come. When the budget is
spent, what has come goes to an unlinked temporary file and the rest of the chunk
follows it there: however many clients are slow, they hold up nobody else. A chunk that
is complete takes its turn for the budget and is read back.
"""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from dolmen.cluster.budget import Budget
from dolmen.cluster.manifest import CHUNK
from dolmen.errors import Corrupt, Full

STEP = 262_144
_SPARE_MAX = 8
_spare: list[mmap.mmap] = []
"""Buffers kept for the next chunk: the first touch of fresh memory is slow."""


def _buffer() -> mmap.mmap:
    """Room for a chunk; memory is only used for as much of it as is written."""
    return (
        _spare.pop()
        if _spare
        else mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    )


def _give_back(buffer: mmap.mmap) -> None:
    if len(_spare) < _SPARE_MAX:
        _spare.append(buffer)


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
        self._buffer: mmap.mmap | None = _buffer()
        self._held = 0
        self.size = 0

    @property
    def data(self) -> memoryview:
        """The bytes."""
        return self._room[: self.size]

    @property
    def _room(self) -> memoryview:
        assert self._buffer is not None
        return memoryview(self._buffer)

    async def fill(self, source: Source) -> None:
        """Receive up to a chunk's size."""
        while self.size < CHUNK:
            step = min(STEP, CHUNK - self.size)
            if not self._budget.try_take(step):
                await self._fill_by_file(source)
                return
            self._held += step
            got = await source.receive_into(self._room[self.size : self.size + step])
            self.size += got
            if got < step:
                return

    async def _fill_by_file(self, source: Source) -> None:
        with _Spill() as spill:
            await spill.write(self.data)
            size = self.size
            self._let_go()
            step = memoryview(bytearray(STEP))
            while size < CHUNK:
                wanted = min(STEP, CHUNK - size)
                got = await source.receive_into(step[:wanted])
                await spill.write(step[:got])
                size += got
                if got < wanted:
                    break
            await self._budget.take(size)
            self._held = size
            self._buffer = _buffer()
            await spill.read_into(self._room[:size])
            self.size = size

    def release(self) -> None:
        """Give buffer and budget back, once. The data must not be used any more."""
        self._let_go()
        self.size = 0

    def _let_go(self) -> None:
        self._budget.give(self._held)
        self._held = 0
        if self._buffer is not None:
            _give_back(self._buffer)
            self._buffer = None


class _Spill:
    """An unlinked temporary file."""

    def __enter__(self) -> Self:
        self._file: BinaryIO = tempfile.TemporaryFile(buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    async def write(self, data: memoryview) -> None:
        """Append bytes; raises `Full` when the temporary folder has no room."""

        def write() -> None:
            at = 0
            while at < len(data):
                at += self._file.write(data[at:])

        try:
            await asyncio.get_running_loop().run_in_executor(None, write)
        except OSError as error:
            raise Full(
                f"the folder for temporary files ({tempfile.gettempdir()}) has no room for what "
                f"slow clients have sent so far: {error.strerror}; set TMPDIR to another"
            ) from error

    async def read_into(self, buffer: memoryview) -> None:
        """Read everything back from the start."""

        def read() -> None:
            self._file.seek(0)
            at = 0
            while at < len(buffer):
                got = self._file.readinto(buffer[at:])  # type: ignore[attr-defined]
                if not got:
                    raise Corrupt("a temporary file was cut short")
                at += got

        await asyncio.get_running_loop().run_in_executor(None, read)
