"""Request bodies as payloads."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from typing import BinaryIO

from dolmen.errors import BadContent
from dolmen.http.body import Body
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.servers.fields import ContentDigest

SMALL = 65_536
_READ = 1 << 20


async def payload_of(body: Body, digest: ContentDigest, spool_folder: str | None) -> Payload:
    """The body of an upload as a payload of known size.

    A body that does not say its length (chunked) is first written to an unlinked
    temporary file, in `spool_folder` where one is given. `digest` is checked before the
    payload ends, so that a store never commits other bytes than were announced.
    """
    if body.whole is not None or (body.length is not None and body.length <= SMALL):
        data = await body.read(SMALL)
        if digest:
            digest.update(data)
            digest.check()
        return Bytes(data)
    if body.length is not None:
        return Stream(body.length, lambda: _checked(body, digest), rereadable=False)
    return await _spooled(_checked(body, digest), spool_folder)


async def _checked(body: Body, digest: ContentDigest) -> AsyncIterator[Piece]:
    async for piece in body:
        if digest:
            digest.update(piece)
        yield piece
    digest.check()


async def _spooled(pieces: AsyncIterator[Piece], folder: str | None) -> Payload:
    loop = asyncio.get_running_loop()
    file: BinaryIO = await loop.run_in_executor(
        None,
        lambda: tempfile.TemporaryFile(dir=folder, buffering=0),  # noqa: SIM115 - it outlives this
    )
    size = 0
    try:
        async for piece in pieces:
            await loop.run_in_executor(None, file.write, bytes(piece))
            size += len(piece)
    except BaseException:
        file.close()
        raise

    async def opened() -> AsyncIterator[Piece]:
        try:
            for at in range(0, size, _READ):
                data = await loop.run_in_executor(None, os.pread, file.fileno(), _READ, at)
                if not data:
                    raise BadContent("the temporary file of an upload was cut off")
                yield data
        finally:
            file.close()

    return Stream(size, opened, rereadable=False)
