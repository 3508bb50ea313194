"""Large blobs: a payload that is streamed into a file of its own.

The file has a name that nobody reads until it is complete, flushed, renamed and its folder
flushed. What makes it current is a touch in the log that says where it lies, so a large blob is
committed like any other write; the file of one that is not is removed, at the latest when the
volume is opened next.

Threads do the writing, one call at a time, while the next piece is received. The caller may
be cancelled while one is under way: `remove` waits for it, or a descriptor could be closed,
and be another file's, under a thread that writes.

Read first: `folder`, `segment`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

from blake3 import blake3

from dolmen.errors import BadContent
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Piece
from dolmen.record import BlockSums, encode_head
from dolmen.store import Write
from dolmen.stores.volume.folder import BLOB, PART, Folder
from dolmen.stores.volume.segment import BEGIN, opening

T = TypeVar("T")
_BEHIND = 4 << 20
"""The kernel is asked to write out what was written after so many bytes."""


class LargeFile:
    """A blob's own file while it is written."""

    def __init__(self, folder: Folder, number: int, write: Write, threads: Executor) -> None:
        self._number, self._write, self._threads = number, write, threads
        self._folder, self._disk = folder, folder.disk
        self._part, self._path = folder.file(number, PART), folder.file(number, BLOB)
        self._owner = secrets.token_bytes(16)
        self._start = self._at = self._behind = BEGIN + len(self._head(bytes(16)))
        self._blake3, self._sums = blake3(), BlockSums()
        self._fd: int | None = None
        self._call: Future[Any] | None = None
        """The last call that a thread was given."""

    async def receive(self) -> bytes:
        """Stream the payload to the file; returns its checksum. Raises `OSError`."""
        await self._run(self._open)
        writing: asyncio.Future[None] | None = None
        async for piece in self._write.payload:
            if writing is not None:
                await writing
            writing = self._run(self._take, piece)
        if writing is not None:
            await writing
        return await self._run(self._finish)

    def remove(self) -> None:
        """It was not committed: remove it. For a thread."""
        if self._call is not None:
            wait([self._call])
        self._close()
        self._disk.unlink(self._part)
        self._disk.unlink(self._path)

    def _run(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        self._call = future = self._threads.submit(call, *arguments)
        return asyncio.wrap_future(future)

    def _head(self, checksum: bytes) -> bytes:
        write = self._write
        name, size, stamp = write.name.encode(), write.payload.size, write.stamp or 0
        return encode_head(write.kind, name, b"", size, stamp, checksum, owner=self._owner)

    # In threads

    def _open(self) -> None:
        self._fd = self._disk.create(self._part)
        self._disk.write(self._fd, [opening(self._number, self._owner)], 0)

    def _take(self, piece: Piece) -> None:
        assert self._fd is not None
        self._blake3.update(piece)
        self._sums.update(piece)
        self._disk.write(self._fd, [piece], self._at)
        self._at += len(piece)
        if self._at - self._behind >= _BEHIND:
            self._disk.write_behind(self._fd, self._behind, self._at - self._behind)
            self._behind = self._at

    def _finish(self) -> bytes:
        """Make the file durable under its name; returns the checksum of the data."""
        assert self._fd is not None
        size, came = self._write.payload.size, self._at - self._start
        if came != size:
            raise BadContent(f"{size} bytes were announced, but {came} came")
        checksum = self._blake3.digest(CHECKSUM_SIZE)
        self._disk.write(self._fd, [self._sums.digest()], self._at)
        self._disk.write(self._fd, [self._head(checksum)], BEGIN)
        self._disk.flush(self._fd)
        self._close()
        self._disk.rename(self._part, self._path)
        self._disk.flush_directory(self._folder.segments)
        return checksum

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)
