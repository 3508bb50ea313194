"""Large blobs: a payload that is streamed into a file of its own.

The file has a name that nobody reads until it is complete, flushed, renamed and its folder
flushed. What makes it current is a touch in the log that says where it lies, so a large blob is
committed like any other write; the file of one that is not is removed, at the latest when the
volume is opened next.

Threads do the writing, one call at a time, while the next piece is received. Who is
cancelled waits for the call that is under way, or a descriptor could be closed, and be
another file's, under a thread that writes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from blake3 import blake3

from dolmen.errors import BadContent
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Piece
from dolmen.record import BlockSums, encode_head
from dolmen.store import Write
from dolmen.stores.volume.catalog import Catalog
from dolmen.stores.volume.folder import BLOB, PART, Folder
from dolmen.stores.volume.segment import SEGMENT_HEADER, encode_header

T = TypeVar("T")
_BEHIND = 4 << 20
"""The kernel is asked to write out what was written after so many bytes."""


class LargeFile:
    """A blob's own file while it is written. Its methods run in threads, one at a time."""

    def __init__(self, folder: Folder, number: int, write: Write) -> None:
        self.number = number
        self._folder, self._disk, self._write = folder, folder.disk, write
        self._owner = secrets.token_bytes(16)
        self._start = SEGMENT_HEADER + len(self._head(bytes(16)))
        self._at = self._written_behind = self._start
        self._blake3, self._sums = blake3(), BlockSums()
        self._fd: int | None = None

    def _head(self, checksum: bytes) -> bytes:
        write = self._write
        size, stamp = write.payload.size, write.stamp or 0
        name = write.name.encode()
        return encode_head(write.kind, name, b"", size, stamp, checksum, owner=self._owner)

    def open(self) -> None:
        """Make the file."""
        self._folder.make_group(self.number)
        self._fd = self._disk.create(self._folder.file(self.number, PART))
        self._disk.write(self._fd, [encode_header(self.number, self._owner)], 0)

    def take(self, piece: Piece) -> None:
        """Write the next piece."""
        assert self._fd is not None
        self._blake3.update(piece)
        self._sums.update(piece)
        self._disk.write(self._fd, [piece], self._at)
        self._at += len(piece)
        if self._at - self._written_behind >= _BEHIND:
            behind = self._written_behind
            self._disk.write_behind(self._fd, behind, self._at - behind)
            self._written_behind = self._at

    def finish(self) -> bytes:
        """Make the file durable under its name; returns the checksum of the data."""
        assert self._fd is not None
        if self._at - self._start != self._write.payload.size:
            raise BadContent(
                f"{self._write.payload.size} bytes were announced, but "
                f"{self._at - self._start} came"
            )
        checksum = self._blake3.digest(CHECKSUM_SIZE)
        self._disk.write(self._fd, [self._sums.digest()], self._at)
        self._disk.write(self._fd, [self._head(checksum)], SEGMENT_HEADER)
        self._disk.flush(self._fd)
        self._close()
        part, path = (self._folder.file(self.number, suffix) for suffix in (PART, BLOB))
        self._disk.rename(part, path)
        self._folder.flush_group(self.number)
        return checksum

    def remove(self, catalog: Catalog) -> None:
        """It was not committed: remove it."""
        self._close()
        for suffix in (PART, BLOB):
            self._disk.unlink(self._folder.file(self.number, suffix))
        catalog.settle(self.number)

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)


async def receive(file: LargeFile, write: Write, threads: Executor) -> bytes:
    """Stream the payload of a write to its file; returns the checksum. Raises `OSError`."""
    await _finished(threads, file.open)
    writing: asyncio.Future[None] | None = None
    loop = asyncio.get_running_loop()
    try:
        async for piece in write.payload:
            if writing is not None:
                await asyncio.shield(writing)
            # The next piece is received while this one is written.
            writing = loop.run_in_executor(threads, file.take, piece)
    finally:
        if writing is not None:
            await _ended(writing)
    if writing is not None:
        writing.result()
    return await _finished(threads, file.finish)


async def _finished(threads: Executor, call: Callable[[], T]) -> T:
    """Run a call in a thread and wait for its end, even when cancelled meanwhile."""
    running = asyncio.get_running_loop().run_in_executor(threads, call)
    await _ended(running)
    return running.result()


async def _ended(running: asyncio.Future[T]) -> None:
    cancelled = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not running.cancelled():
            running.exception()  # seen: the caller is gone
        raise cancelled
