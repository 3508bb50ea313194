"""Large blobs: data in parts, sent before there is a head and read a few at a time."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from blake3 import blake3

from dolmen.buffers import Buffers
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Payload, Piece
from dolmen.stores.redis.layout import PART, SUM_SIZE, Keys, part_sum, parts_of
from dolmen.stores.redis.link import Link
from dolmen.stores.redis.scripts import DROP

AT_ONCE = 4
"""Parts of one blob that are on their way: 4 MiB."""
LIFE = 86_400
"""Seconds after which parts that nobody committed expire."""
_buffers = Buffers(PART, spare=8)


class Upload:
    """The parts of one put: gone at the end of its `with` unless they are `kept`.

    `sums` are the checksums of the parts, `checksum` that of the data.
    """

    def __init__(self, link: Link, keys: Keys, tag: int) -> None:
        self._link, self._tag = link, tag
        self.id = secrets.token_bytes(16)
        self._key = keys.parts(tag, self.id)
        self._sums = bytearray()
        self.checksum = b""
        self.kept = False

    @property
    def sums(self) -> bytes:
        """Four bytes for every part."""
        return bytes(self._sums)

    async def send(self, payload: Payload) -> None:
        """Send all of a payload; raises what reading and sending it raise."""
        hasher = blake3()
        on_their_way: deque[asyncio.Future[object]] = deque()
        try:
            async for part in _cut(payload):
                hasher.update(part)
                if len(on_their_way) >= AT_ONCE:
                    await on_their_way.popleft()
                key = self._key + b"%d" % (len(self._sums) // SUM_SIZE)
                self._sums += part_sum(part)
                on_their_way.append(self._link.write(self._tag, b"SETEX", key, LIFE, part))
            while on_their_way:
                await on_their_way.popleft()
        finally:
            for future in on_their_way:
                future.cancel()
        self.checksum = hasher.digest(CHECKSUM_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        count = len(self._sums) // SUM_SIZE
        if count and not self.kept:  # nobody waits for it: what it can't reach expires
            gone = self._link.write(self._tag, b"EVALSHA", DROP, 1, self._key, count)
            gone.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _cut(payload: Payload) -> AsyncIterator[memoryview]:
    """The data of a payload in pieces of `PART` bytes, the last one shorter."""
    if payload.whole is not None:
        whole = memoryview(payload.whole)
        for at in range(0, len(whole), PART):
            yield whole[at : at + PART]
        return
    buffer, filled = _buffers.take(), 0
    async for piece in payload:
        view = memoryview(piece)
        while view:
            taken = view[: PART - filled]
            buffer[filled : filled + len(taken)] = taken
            view, filled = view[len(taken) :], filled + len(taken)
            if filled == PART:
                yield buffer
                buffer, filled = _buffers.take(), 0
    if filled:
        yield buffer[:filled]


class Parts:
    """The parts of a blob, whose keys begin with `key`; `sums` are their checksums."""

    def __init__(self, link: Link, tag: int, key: bytes, sums: memoryview) -> None:
        self._link, self._tag, self._key, self._sums = link, tag, key, sums

    async def read(
        self, start: int, stop: int, broken: Callable[[int], Awaitable[Exception]]
    ) -> AsyncIterator[Piece]:
        """The checked bytes of a range, out of the parts it touches.

        Raises what `broken` makes of the number of a part that is missing or damaged.
        """
        rest = iter(range(start // PART, parts_of(stop)))
        ahead: deque[tuple[int, asyncio.Future[bytes | None]]] = deque()
        try:
            while True:
                while len(ahead) < AT_ONCE and (number := next(rest, -1)) >= 0:
                    key = self._key + b"%d" % number
                    ahead.append((number, self._link.ask(self._tag, b"GET", key)))
                if not ahead:
                    return
                number, asked = ahead.popleft()
                part = await asked
                sum_at = number * SUM_SIZE
                if part is None or part_sum(part) != self._sums[sum_at : sum_at + SUM_SIZE]:
                    raise await broken(number)
                at = number * PART
                yield memoryview(part)[max(start - at, 0) : stop - at]
        finally:
            for _, asked in ahead:
                asked.cancel()
