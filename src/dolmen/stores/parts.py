"""The data of large blobs in parts, for engines whose values are small.

Each part is kept with its CRC-32C behind it (4 bytes, little-endian), so every one that is
read is checked by itself, and data goes in and out in bounded memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice

from blake3 import blake3
from crc32c import crc32c

from dolmen.buffers import Buffers
from dolmen.closing import closing
from dolmen.errors import Corrupt, OutcomeUnknown, Unavailable
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Payload
from dolmen.stores.base import UnderWay

_SUM = 4


class Parts:
    """Cuts data into parts of `size` bytes, the last one shorter; `at_once` are on their way."""

    def __init__(self, size: int, *, at_once: int) -> None:
        self._size, self._at_once = size, at_once
        self._buffers = Buffers(size + _SUM, spare=2 * at_once)

    def count(self, total: int) -> int:
        """How many parts so many bytes are."""
        return -(-total // self._size)

    async def send(
        self, payload: Payload, keep: Callable[[int, memoryview], Awaitable[None]]
    ) -> bytes:
        """Have each part kept, by its number; returns the checksum of the whole data."""
        hasher, number = blake3(), 0
        async with UnderWay[None]() as sending, closing(self._cut(payload)) as parts:
            async for part in parts:
                hasher.update(part[:-_SUM])
                if len(sending) == self._at_once:
                    await _settled(sending)
                sending.add(keep(number, part))
                number += 1
            while sending:
                await _settled(sending)
        return hasher.digest(CHECKSUM_SIZE)

    async def read(
        self,
        fetch: Callable[[int], Awaitable[bytes | memoryview | None]],
        name: str,
        total: int,
        start: int,
        stop: int,
    ) -> AsyncIterator[memoryview]:
        """The bytes of a range within `total`; raises `Corrupt` for a part that is not sound."""
        numbers = range(start // self._size, self.count(stop) if start < stop else 0)
        following = iter(numbers)
        async with UnderWay[bytes | memoryview | None]() as ahead:
            for number in numbers:
                for later in islice(following, self._at_once - len(ahead)):
                    ahead.add(fetch(later))
                part, at = memoryview(await ahead.next() or b""), number * self._size
                data = part[:-_SUM]
                if len(data) != min(self._size, total - at) or part[-_SUM:] != _sum(data):
                    raise Corrupt(f"part {number} of {name} is missing or damaged")
                yield data[max(start - at, 0) : stop - at]

    async def _cut(self, payload: Payload) -> AsyncIterator[memoryview]:
        """The parts of a payload, each with its sum behind it."""
        held, filled = self._buffers.take(), 0
        async for piece in payload:
            rest = memoryview(piece)
            while rest:
                taken = rest[: self._size - filled]
                held[filled : filled + len(taken)] = taken
                filled += len(taken)
                rest = rest[len(taken) :]
                if filled == self._size:
                    yield _sealed(held, filled)
                    held, filled = self._buffers.take(), 0
        if filled:
            yield _sealed(held, filled)


def _sum(data: memoryview) -> bytes:
    return crc32c(data).to_bytes(_SUM, "little")


def _sealed(buffer: memoryview, size: int) -> memoryview:
    buffer[size : size + _SUM] = _sum(buffer[:size])
    return buffer[: size + _SUM]


async def _settled(sending: UnderWay[None]) -> None:
    try:
        await sending.next()
    except OutcomeUnknown as error:  # nobody sees a part
        raise Unavailable(f"a part could not be stored, so nothing was: {error}") from error
