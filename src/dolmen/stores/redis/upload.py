"""Uploads of large blobs: data in parts, sent before there is an entry."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from blake3 import blake3

from dolmen.buffers import Buffers
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Payload
from dolmen.stores.redis.connection import Ask
from dolmen.stores.redis.layout import PART, SUM_SIZE, Keys, part_sum
from dolmen.stores.redis.link import Link
from dolmen.stores.redis.reading import AT_ONCE
from dolmen.stores.redis.scripts import DROP

LIFE = 86_400
"""Seconds after which parts that nobody committed expire."""
_buffers = Buffers(PART, spare=8)


class Upload:
    """The parts of one put: gone at the end of its `with` unless an entry has them by then.

    `sums` are the checksums of the parts, `checksum` that of the data.
    """

    def __init__(self, link: Link, keys: Keys, tag: int) -> None:
        self._link, self._keys, self._tag = link, keys, tag
        self.id = secrets.token_bytes(16)
        self.sums = bytearray()
        self.checksum = b""

    async def send(self, payload: Payload) -> None:
        """Send all of a payload; raises what reading and sending it raise."""
        hasher = blake3()
        on_their_way: deque[Ask] = deque()
        async for part in _cut(payload):
            hasher.update(part)
            if len(on_their_way) == AT_ONCE:
                await on_their_way.popleft()
            key = self._keys.part(self._tag, self.id, len(self.sums) // SUM_SIZE)
            self.sums += part_sum(part)
            on_their_way.append(
                self._link.ask(self._tag, b"SETEX", key, LIFE, part, writes=True, bulk=True)
            )
        while on_their_way:
            await on_their_way.popleft()
        self.checksum = hasher.digest(CHECKSUM_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was not committed. Nobody waits for it: what it can't reach expires."""
        count = len(self.sums) // SUM_SIZE
        keys = self._keys.parts(self._tag, self.id, count)
        if keys:  # over the way of the parts, so it comes behind them
            self._link.ask(self._tag, b"EVALSHA", DROP, count, *keys, writes=True, bulk=True)


async def _cut(payload: Payload) -> AsyncIterator[memoryview]:
    """The data of a payload in pieces of `PART` bytes, the last one shorter."""
    held, filled = _buffers.take(), 0
    async for piece in payload:
        view = memoryview(piece)
        while len(view) >= PART - filled:
            taken, view = view[: PART - filled], view[PART - filled :]
            if filled:
                held[filled:] = taken
                taken, held, filled = held, _buffers.take(), 0
            yield taken
        held[filled : filled + len(view)] = view
        filled += len(view)
    if filled:
        yield held[:filled]
