"""Request bodies as payloads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from dolmen.buffers import Buffers
from dolmen.http.body import Body
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.servers.fields import ContentDigest
from dolmen.spool import Spool

SMALL = 65_536
_PIECE = 2 << 20
_buffers = Buffers(_PIECE, spare=8)
_ROOM = 64 << 20
"""What the pieces on their way take together, unless there are a thousand uploads and more."""
_receiving: set[Body] = set()


async def payload_of(body: Body, digest: ContentDigest, spool_folder: str | None) -> Payload:
    """The body of an upload as a payload of known size.

    A body that does not say its length (chunked) is first written to an unlinked
    temporary file, in `spool_folder` where one is given. `digest` is checked before the
    payload ends, so that a store never commits other bytes than were announced. Raises `Full`
    when there is no room for the temporary file.
    """
    if body.whole is not None or (body.length is not None and body.length <= SMALL):
        data = await body.read(SMALL)
        if digest:
            digest.update(data)
            digest.check()
        return Bytes(data)
    if body.length is not None:
        pieces = partial(_received, body, body.length)
        return Stream(body.length, lambda: _checked(pieces(), digest), rereadable=False)
    return await _spooled(_checked(aiter(body), digest), spool_folder)


async def _received(body: Body, length: int) -> AsyncIterator[Piece]:
    """Large pieces, straight from the socket into memory."""
    _receiving.add(body)
    try:
        while length:
            share = max(SMALL, min(_PIECE, _ROOM // len(_receiving)))
            piece = _buffers.take()[: min(length, share)]
            length -= await body.receive_into(piece)
            yield piece
    finally:
        _receiving.discard(body)


async def _checked(pieces: AsyncIterator[Piece], digest: ContentDigest) -> AsyncIterator[Piece]:
    in_thread = asyncio.get_running_loop().run_in_executor
    async for piece in pieces:
        if digest:
            await in_thread(None, digest.update, piece)
        yield piece
    digest.check()


async def _spooled(pieces: AsyncIterator[Piece], folder: str | None) -> Payload:
    in_thread = partial(asyncio.get_running_loop().run_in_executor, None)
    spool = await in_thread(Spool, folder)
    async for piece in pieces:
        await in_thread(spool.append, piece)

    async def opened() -> AsyncIterator[Piece]:
        for at in range(0, spool.size, _PIECE):
            yield await in_thread(spool.read, at, _buffers.take())

    return Stream(spool.size, opened, rereadable=False)
