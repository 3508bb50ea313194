"""Parts: the data of a blob above 64 KiB, 8 MiB an object, and the sums that check it.

In a part every 256 KiB of data (the last time what is left) is followed by its CRC-32C
(little-endian), so that a range is one request, of the blocks it touches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from blake3 import blake3
from crc32c import crc32c

from dolmen.errors import Corrupt, DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import CHECKSUM_SIZE, checksum_of
from dolmen.payload import Payload, read_whole
from dolmen.stores.objects.bucket import Bucket
from dolmen.stores.objects.head import INLINE, Head, folder_of, new_id

PART = 8 << 20
BLOCK = 262_144
_SUM = 4
GRACE = 86_400
"""Seconds for which what nobody refers to any more is kept."""


def frame(data: memoryview) -> bytes:
    """A part of this data."""
    framed: list[bytes | memoryview] = []
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        framed += [block, crc32c(block).to_bytes(_SUM, "little")]
    return b"".join(framed)


def framed_size(size: int) -> int:
    """The length of a part with so much data."""
    return size + -(-size // BLOCK) * _SUM


def unframe(framed: memoryview) -> list[memoryview]:
    """The data of some blocks, checked; raises `Corrupt`."""
    blocks = []
    for at in range(0, len(framed), BLOCK + _SUM):
        unit = framed[at : at + BLOCK + _SUM]
        block, told = unit[:-_SUM], unit[-_SUM:]
        if crc32c(block) != int.from_bytes(told, "little"):
            raise Corrupt("a block fails its sum")
        blocks.append(block)
    return blocks


async def read(bucket: Bucket, head: Head, start: int, stop: int) -> AsyncIterator[memoryview]:
    """The bytes of a range, in pieces; raises `Corrupt` for a part that is gone or damaged."""
    while start < stop:
        number, first = divmod(start, PART)
        here = min(PART, head.size - number * PART)
        last = min(stop - number * PART, here)
        begin = first // BLOCK * BLOCK
        end = min(-(-last // BLOCK) * BLOCK, here)
        path = f"{head.data}/{number:06x}"
        if (begin, end) == (0, here):
            framed = await bucket.get(path)
        else:
            framed = await bucket.get(path, framed_size(begin), framed_size(end))
        if framed is None or len(framed) != framed_size(end) - framed_size(begin):
            raise Corrupt(f"part {number} of {head.name} is gone or cut short")
        for block in unframe(framed):
            piece = block[max(first - begin, 0) : last - begin]
            begin += BLOCK
            if piece:
                yield piece
        start = number * PART + last


class Upload:
    """The data of one blob on its way in: small data stays here, parts go into the bucket.

    One part is sent while the next one comes.
    """

    def __init__(self, bucket: Bucket, name: str, now: Callable[[], float]) -> None:
        self._bucket, self._now = bucket, now
        self._told = now()
        self.id = new_id(self._told)
        self.data: bytes | memoryview = b""
        self._folder = f"{folder_of('data', name)}/{self.id}"
        self._paths: list[str] = []
        self._sending: asyncio.Task[None] | None = None

    async def take(self, payload: Payload) -> bytes:
        """Take all of a payload; returns its checksum."""
        if payload.size <= INLINE:
            self.data = await read_whole(payload)
            return checksum_of(self.data)
        hasher, held = blake3(), bytearray()
        if payload.whole is not None and payload.size <= PART:
            await self._send(payload.whole)
            await self._sent()
            return checksum_of(payload.whole)
        try:
            async for piece in payload:
                hasher.update(piece)
                rest = memoryview(piece)
                while rest:
                    room = PART - len(held)
                    held += rest[:room]
                    rest = rest[room:]
                    if len(held) == PART:
                        await self._send(held)
                        held = bytearray()
            if held:
                await self._send(held)
            await self._sent()
            await self._keep()
        finally:
            if self._sending is not None:
                self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)
        return hasher.digest(CHECKSUM_SIZE)

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        await self._sent()
        await self._keep()
        path = f"{self._folder}/{len(self._paths):06x}"
        self._paths.append(path)
        self._sending = asyncio.ensure_future(self._bucket.put(path, frame(memoryview(data))))

    async def _sent(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            try:
                await sending
            except OutcomeUnknown as error:
                raise Unavailable(f"a part could not be stored, and nothing was: {error}") from None

    async def _keep(self) -> None:
        """Tell the sweep in time that this is not abandoned."""
        now = self._now()
        if now - self._told >= GRACE:
            raise Unavailable("this upload stood still for a day and has to be begun again")
        if now - self._told >= GRACE / 2:
            self._told = now
            await keep(self._bucket, self._folder, now)

    async def drop(self) -> None:
        """Take away what was stored, as far as it can be: the sweep finds the rest."""
        with suppress(DolmenError):
            await self._bucket.delete(self._paths)


async def keep(bucket: Bucket, folder: str, now: float) -> None:
    """Say that the parts in this folder were in use now."""
    await bucket.put(f"{folder}/at.{int(now):08x}", b"")
