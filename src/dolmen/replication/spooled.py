"""Blobs too large for memory, read to their end before anybody gets to see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from blake3 import blake3

from dolmen.closing import closing
from dolmen.errors import Corrupt
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Piece, Stream
from dolmen.spool import Spool
from dolmen.store import Blob, BlobInfo

_STEP = 1 << 20


async def spooled(blob: Blob) -> Blob:
    """The same blob from a temporary file, if it has not its bytes in memory.

    What can't be read, or has not the checksum it came with, raises here and not
    when others read it. A checksum that its store does not tell is worked out. Raises
    `Full` where there is no room.
    """
    if blob.payload.whole is not None:
        return blob
    info, hasher = blob.info, blake3()
    spool = await asyncio.to_thread(Spool)

    def keep(piece: Piece) -> None:
        hasher.update(piece)
        spool.append(piece)

    async with closing(aiter(blob.payload)) as pieces:
        async for piece in pieces:
            await asyncio.to_thread(keep, piece)
    checksum = hasher.digest(CHECKSUM_SIZE)
    if info.checksum not in (b"", bytes(CHECKSUM_SIZE), checksum):
        raise Corrupt(f"{info.name} has other content than its checksum says")

    async def read() -> AsyncIterator[Piece]:
        for at in range(0, spool.size, _STEP):
            yield await asyncio.to_thread(spool.read, at, memoryview(bytearray(_STEP)))

    known = BlobInfo(info.name, spool.size, info.kind, info.stamp, checksum, info.metadata)
    return Blob(known, Stream(spool.size, read))
