"""The data of a blob above 64 KiB: parts of 4 MiB, and the sums that check them.

    data/PPPP/NAME!/ID.NUMBER

ID is that of the one head they belong to. In a part every 256 KiB of data (the last time what is
left) is followed by its CRC-32C (little-endian), so a range is one request for each part, of the
blocks it touches.

These are objects of their own and not one multipart upload: an abandoned multipart upload can't
be listed, and is paid for until a rule of the bucket ends it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from blake3 import blake3
from crc32c import crc32c

from dolmen.errors import Corrupt, DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import CHECKSUM_SIZE, checksum_of
from dolmen.payload import Payload, read_whole
from dolmen.stores.base import UnderWay
from dolmen.stores.bucket_client import Client
from dolmen.stores.bucket_head import INLINE, Head, folder_of, new_id

PART = 4 << 20
BLOCK = 262_144
GRACE = 86_400
"""Seconds for which what no head refers to, or what was outranked, is kept."""
_SUM = 4
_SENT_AT_ONCE = 3


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


async def read(client: Client, head: Head, start: int, stop: int) -> AsyncIterator[memoryview]:
    """The bytes of a range, in pieces; raises `Corrupt` for a part that is gone or damaged."""
    while start < stop:
        number, first = divmod(start, PART)
        here = min(PART, head.size - number * PART)
        last = min(stop - number * PART, here)
        begin = first // BLOCK * BLOCK
        end = min(-(-last // BLOCK) * BLOCK, here)
        path = part_path(head.name, head.id, number)
        # A whole part is read without a range, so that one that has grown is noticed.
        part = (0, None) if end - begin == here else (framed_size(begin), framed_size(end))
        framed = await client.get(path, *part)
        if framed is None or len(framed) != framed_size(end) - framed_size(begin):
            raise Corrupt(f"part {number} of {head.name} is gone or of another length")
        for at in range(0, len(framed), BLOCK + _SUM):
            unit = framed[at : at + BLOCK + _SUM]
            block, told = unit[:-_SUM], unit[-_SUM:]
            if crc32c(block) != int.from_bytes(told, "little"):
                raise Corrupt(f"a block of part {number} of {head.name} fails its checksum")
            piece = block[max(first - begin, 0) : last - begin]
            begin += BLOCK
            if piece:
                yield piece
        start = number * PART + last


def part_path(name: str, id_: str, number: int) -> str:
    """The key of a part."""
    return f"data/{folder_of(name)}/{id_}.{number:06x}"


class Upload:
    """The data of one write on its way in: small data stays in memory, parts go to the bucket.

    The sweep deletes parts without a head once the newest of them is `GRACE` old by the bucket's
    clock. So a head is only good if it came well before: `check_age`, called before it is
    put and after, allows half of that. `seconds` is `bucket_client.seconds`.
    """

    def __init__(self, client: Client, name: str, seconds: Callable[[], float]) -> None:
        self.id = new_id()
        self.data: bytes | memoryview = b""
        self.size = 0
        self._client, self._name, self._seconds = client, name, seconds
        self._paths: list[str] = []
        self._sent_at = seconds()

    async def take(self, payload: Payload) -> bytes:
        """Take all of a payload; returns its checksum."""
        self.size = payload.size
        if payload.size <= INLINE:
            self.data = await read_whole(payload)
            return checksum_of(self.data)
        hasher, held = blake3(), bytearray()
        async with UnderWay[None]() as sending:
            async for piece in payload:
                hasher.update(piece)
                rest = memoryview(piece)
                while rest:
                    taken = rest[: PART - len(held)]
                    held += taken
                    rest = rest[len(taken) :]
                    if len(held) == PART:
                        if len(sending) == _SENT_AT_ONCE:
                            await sending.next()
                        sending.add(self._send(self._next_path(), held))
                        held = bytearray()
            if held:
                sending.add(self._send(self._next_path(), held))
            while sending:
                await sending.next()
        return hasher.digest(CHECKSUM_SIZE)

    def _next_path(self) -> str:
        path = part_path(self._name, self.id, len(self._paths))
        self._paths.append(path)
        return path

    async def _send(self, path: str, data: bytearray) -> None:
        self.check_age()
        self._sent_at = self._seconds()
        try:
            await self._client.put(path, frame(memoryview(data)))
        except OutcomeUnknown as error:
            raise Unavailable(f"a part could not be stored, so nothing was: {error}") from error

    def check_age(self) -> None:
        """Raise `Unavailable` if the last part was sent so long ago that the sweep may be near."""
        if self._paths and self._seconds() - self._sent_at >= GRACE / 2:
            raise Unavailable("this upload made no progress for half a day: start it again")

    async def drop(self) -> None:
        """Delete the parts of a write that came to nothing, if it can be: the sweep does it too."""
        with suppress(DolmenError):
            await self._client.delete(self._paths)
