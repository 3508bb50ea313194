"""Checking a blob against the name it was stored under, before it is handed out."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator

from dolmen.cluster.manifest import CHUNK
from dolmen.errors import Corrupt
from dolmen.names import is_object_id, matches_name
from dolmen.payload import Bytes, Payload, Piece, Stream, read_whole
from dolmen.record import Kind
from dolmen.store import Blob, Range

_INLINE = 65_536
"""Up to this size hashing takes less time than handing it to a thread."""
_HELD_BACK = 65_536


async def verified(blob: Blob, byte_range: Range | None) -> Blob | None:
    """The blob with a payload that is known to be right; None when it is not.

    A blob of up to a chunk's size is read whole (the caller asked for all of it) and a
    range cut out. A larger one under an object id, put there by other software,
    is hashed while it streams: its last 64 KiB come only when the digest is right.
    What has no digest in its name was checked by its store. Raises what reading raises.
    """
    info = blob.info
    if info.size > CHUNK:
        if byte_range is None and info.kind == Kind.BLOB and is_object_id(info.name):
            return Blob(
                info,
                Stream(
                    info.size,
                    lambda: _hashed(info.name, blob.payload),
                    rereadable=blob.payload.rereadable,
                ),
            )
        return blob
    data = blob.payload.whole
    if data is None:
        data = await read_whole(blob.payload)
        blob = Blob(info, Bytes(data))
    if info.kind == Kind.BLOB:
        if len(data) <= _INLINE:
            matches = matches_name(info.name, data)
        else:
            loop = asyncio.get_running_loop()
            matches = await loop.run_in_executor(None, matches_name, info.name, data)
        if not matches:
            return None
    return blob if byte_range is None else Blob(info, Bytes(memoryview(data)[slice(*byte_range)]))


async def _hashed(name: str, payload: Payload) -> AsyncIterator[Piece]:
    hasher = hashlib.sha256() if len(name) == 64 else hashlib.sha1(usedforsecurity=False)
    loop = asyncio.get_running_loop()
    held: deque[bytes] = deque()
    size = 0
    async for piece in payload:
        data = bytes(piece)
        await loop.run_in_executor(None, hasher.update, data)
        held.append(data)
        size += len(data)
        while size - len(held[0]) >= _HELD_BACK:
            size -= len(held[0])
            yield held.popleft()
    if hasher.hexdigest() != name:
        raise Corrupt(f"{name} has other content than its id says; it was broken off")
    for data in held:
        yield data
