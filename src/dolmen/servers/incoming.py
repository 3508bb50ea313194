"""Upload bodies: what their header fields announce, the check of `Content-Digest`, and the body
as a payload.

Read first: `dolmen.http.body`, `dolmen.servers.fields`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from dolmen.buffers import Buffers
from dolmen.closing import closing
from dolmen.http import Request
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.servers.fields import Announced, ContentDigest, announced_by
from dolmen.spool import Spool

SMALL = 65_536
_PIECE = 2 << 20
_buffers = Buffers(_PIECE, spare=8)


def announced(request: Request) -> Announced:
    """What the header fields of an upload say of it; worked out once for the same fields."""
    headers = request.headers
    told = headers.meaning
    if type(told) is not Announced:
        told = headers.meaning = announced_by(headers)
    return told


class Checked:
    """A body whose Content-Digest, if it has one, is checked before its end is given.

    So a store never commits other bytes than were announced. `whole` is all of it where that
    has arrived.
    """

    _room = 64 << 20
    """What the pieces of all bodies may still take, though each may have `SMALL` bytes."""

    def __init__(self, request: Request) -> None:
        self._body = request.body
        self._digest = ContentDigest(request.headers)
        self.length = self._left = self._body.length
        self.whole = self._body.whole
        if self.whole is not None:
            self._digest.update(self.whole)
            self._digest.check()

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Body.receive_into`."""
        got = await self._body.receive_into(buffer)
        if self._digest:
            run = asyncio.get_running_loop().run_in_executor
            await run(None, self._digest.update, buffer[:got])
        if self._left is not None:
            self._left -= got
        if got < len(buffer) or self._left == 0:
            self._digest.check()
        return got

    async def payload(self, spool_folder: str | None) -> Payload:
        """All of it as a payload of known size.

        A body that does not say its length (chunked) is first written to an unlinked temporary
        file, in `spool_folder` where one is given. Raises `Full` when there is no room for it.
        """
        if self.whole is not None:
            return Bytes(self.whole)
        if self.length is None:
            return await self._spooled(spool_folder)
        if self.length <= SMALL:
            data = memoryview(bytearray(self.length))
            await self.receive_into(data)
            return Bytes(data)
        return Stream(self.length, self._pieces, rereadable=False)

    async def _pieces(self) -> AsyncIterator[Piece]:
        """Large pieces, straight from the socket into memory."""
        got = size = 0
        while got == size and self._left != 0:
            size = max(SMALL, min(_PIECE, self._room // 8))
            Checked._room -= size
            try:
                piece = _buffers.take()[:size]
                got = await self.receive_into(piece)
                yield piece[:got]
            finally:
                Checked._room += size

    async def _spooled(self, folder: str | None) -> Payload:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, None)
        spool = await in_thread(Spool, folder)
        async with closing(self._pieces()) as pieces:
            async for piece in pieces:
                await in_thread(spool.append, piece)

        async def opened() -> AsyncIterator[Piece]:
            for at in range(0, spool.size, _PIECE):
                yield await in_thread(spool.read, at, _buffers.take())

        return Stream(spool.size, opened, rereadable=False)
