"""Checking blobs and objects against the names they are stored under, before they are handed out.

A chunk's name holds the BLAKE3 of its data, whatever its kind. An object's id is the
digest of the object's bytes; a manifest under an id is no such content: the object it
names is checked as a whole while it streams. Every other name takes any content.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dolmen.closing import closing
from dolmen.errors import Corrupt
from dolmen.names import Buffer, id_hasher, is_chunk_name, matches_name
from dolmen.payload import Piece
from dolmen.record import Kind
from dolmen.store import BlobInfo

INLINE = 65_536
"""Up to this size hashing takes less time than handing it to a thread."""
_HELD_BACK = 65_536


async def is_right(info: BlobInfo, data: Buffer) -> bool:
    """Whether these bytes may be handed out under this name."""
    if info.kind != Kind.BLOB and not is_chunk_name(info.name):
        return True
    if len(data) > INLINE:
        in_thread = asyncio.get_running_loop().run_in_executor
        return await in_thread(None, matches_name, info.name, data)
    return matches_name(info.name, data)


async def digest_checked(object_id: str, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The pieces of an object; the last 64 KiB come only when its whole digest is right.

    Hashing goes on in a thread beside the sending. Raises `Corrupt` otherwise.
    """
    hasher = id_hasher(object_id)
    in_thread = asyncio.get_running_loop().run_in_executor
    hashing: asyncio.Future[None] | None = None
    tail: Piece = b""
    async with closing(pieces):
        async for piece in pieces:
            if hashing is not None:
                await hashing
                hashing = None
            if len(piece) > INLINE:
                hashing = in_thread(None, hasher.update, piece)
            else:
                hasher.update(piece)
            if len(piece) < _HELD_BACK:
                piece, tail = bytes(tail) + bytes(piece), b""
            if tail:
                yield tail
            cut = max(len(piece) - _HELD_BACK, 0)
            if cut:
                yield memoryview(piece)[:cut]
            tail = bytes(piece[cut:])
            del piece
    if hashing is not None:
        await hashing
    if hasher.hexdigest() != object_id:
        raise Corrupt(f"the content of {object_id} does not have this digest; it was broken off")
    if tail:
        yield tail
