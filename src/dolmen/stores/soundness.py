"""Reading a blob to its end, to know that it is what it is said to be."""

from __future__ import annotations

import asyncio

from blake3 import blake3

from dolmen.closing import closing
from dolmen.errors import Corrupt, DolmenError
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX, id_hasher, is_chunk_name, is_object_id
from dolmen.record import Kind
from dolmen.store import Blob, BlobInfo, Failed

_INLINE = 65_536
"""Up to this size hashing takes less time than handing it to a thread."""


async def verify(blob: Blob) -> BlobInfo | Failed:
    """What is known of a blob whose bytes have the checksum and the digest they should.

    A store without stamps knows no checksums; there the name alone is held against them.
    """
    info = blob.info
    if info.kind == Kind.TOMBSTONE:
        return info
    checksum = blake3()
    digest = None
    if info.kind == Kind.BLOB and is_object_id(info.name):
        digest = id_hasher(info.name)
    loop = asyncio.get_running_loop()
    size = 0
    try:
        async with closing(aiter(blob.payload)) as pieces:
            async for piece in pieces:
                size += len(piece)
                for hasher in (checksum, digest):
                    if hasher is None:
                        continue
                    if len(piece) <= _INLINE:
                        hasher.update(piece)
                    else:
                        await loop.run_in_executor(None, hasher.update, piece)
    except DolmenError as error:
        return Failed(info.name, error)
    named = info.name
    if digest is not None:
        named = digest.hexdigest()
    elif is_chunk_name(info.name):
        named = CHUNK_PREFIX + checksum.hexdigest()
    if named != info.name:
        return Failed(info.name, Corrupt(f"the content under {info.name} has another digest"))
    if any(info.checksum) and (
        checksum.digest(CHECKSUM_SIZE) != info.checksum or size != info.size
    ):
        return Failed(info.name, Corrupt(f"the content of {info.name} has another checksum"))
    return info
