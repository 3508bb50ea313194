"""Uploading an object: one blob, or chunks and a manifest.

An object exists when its blob, or its manifest, does; the manifest is written last, when
every chunk has been acknowledged with its copies. Hashing goes on in threads while the next
chunk is received and the ones before are being sent. Chunks in memory draw on the budget:
whoever waits for it holds none but chunks on their way to servers.
Read first: `dolmen.cluster.write`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

from dolmen.cluster.budget import Budget
from dolmen.cluster.fan_out import heard
from dolmen.cluster.manifest import CHUNK, OBJECT_MAX, ChunkNames, Manifest
from dolmen.cluster.verify import INLINE
from dolmen.cluster.write import Writer, checksum_in
from dolmen.errors import BadContent, TooLarge
from dolmen.names import CHUNK_PREFIX, chunk_name
from dolmen.payload import CHUNKS, Bytes
from dolmen.record import Kind
from dolmen.store import Outcome, Write

Digest = Literal["sha256", "sha1"]
_HASHERS: Mapping[Digest, Callable[[], hashlib._Hash]] = {
    "sha256": hashlib.sha256,
    "sha1": partial(hashlib.sha1, usedforsecurity=False),
}
IN_FLIGHT = 3
"""Chunks of one upload that are being sent at once."""
YOUNG = 120.0
"""Seconds for which a chunk that was sent is taken to be there still, by the uploader's clock."""


class Source(Protocol):
    """A body: `length` is in bytes, None when it is not known beforehand."""

    length: int | None

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes; less only at its end, 0 after it."""
        ...


class Uploaded(NamedTuple):
    """An object that is stored: its size in bytes, on how many servers, and what it met there."""

    id: str
    size: int
    copies: int
    outcome: Outcome


@dataclass(slots=True)
class Uploads:
    """Uploads through a writer.

    Both raise `BadContent` when the content has not the id expected, and nothing is stored then
    but chunks nobody names; and `NoCopies`.
    """

    writer: Writer
    budget: Budget
    digest: Digest = "sha256"
    now: Callable[[], float] = time.monotonic

    async def small(
        self, data: bytes | memoryview, meta: bytes = b"", expected: str | None = None
    ) -> Uploaded:
        """Store an object that is in memory, of up to a chunk's size."""
        hasher = _HASHERS[self.digest]()
        if len(data) <= INLINE:
            hasher.update(data)
        else:
            await asyncio.get_running_loop().run_in_executor(None, hasher.update, data)
        found = _expected(hasher.hexdigest(), expected)
        written = await self.writer.put(Write(found, Bytes(data), metadata=meta))
        return Uploaded(found, len(data), written.copies, written.outcome)

    async def any(self, source: Source, meta: bytes = b"", expected: str | None = None) -> Uploaded:
        """Store a body as it arrives. Also raises `TooLarge`, and what receiving raises."""
        left = source.length
        if left is not None and left > OBJECT_MAX:
            raise TooLarge(f"{left} bytes are more than an object can have ({OBJECT_MAX})")
        data, following = await self._receive(source, b"", left)
        if not following and (left is None or left <= CHUNK):
            try:
                return await self.small(data, meta, expected)
            finally:
                self.budget.give(len(data))
        large = _Large(self)
        try:
            while True:
                await large.add(data)
                left = None if left is None else left - len(data)
                if not (following if left is None else left):
                    return await large.finish(meta, expected)
                data, following = await self._receive(source, following, left)
        finally:
            large.stop()

    async def _receive(
        self, source: Source, begun: bytes, left: int | None
    ) -> tuple[memoryview, bytes]:
        """The next chunk, which begins with bytes received before, and where the length of the
        body is not known the byte after it. The caller gives the budget of the chunk back.
        """
        size = CHUNK if left is None else min(CHUNK, left)
        await self.budget.take(size)
        got = 0
        try:
            data = (CHUNKS.take() if size > INLINE else memoryview(bytearray(size)))[:size]
            data[: len(begun)] = begun
            received = len(begun) + await source.receive_into(data[len(begun) :])
            following = bytearray(left is None and received == CHUNK)
            if following:
                following = following[: await source.receive_into(memoryview(following))]
            if left is not None and received < size:
                raise BadContent(f"the body ended {left - received} bytes early")
            got = received
        finally:
            self.budget.give(size - got)
        return data[:got], bytes(following)


class _Large:
    """An object of several chunks on its way in."""

    def __init__(self, uploads: Uploads) -> None:
        self._writer, self._budget, self._now = uploads.writer, uploads.budget, uploads.now
        self._hasher = _HASHERS[uploads.digest]()
        self._loop = asyncio.get_running_loop()
        self._hashed: asyncio.Future[None] | None = None
        self._sending: deque[asyncio.Task[tuple[str, int]]] = deque()
        self._size = 0
        self._digests = bytearray()
        self._begun: array[float] = array("d")
        self._copies = 255

    async def add(self, chunk: memoryview) -> None:
        """Hash a chunk into the whole, in order, and begin to send it. Its budget is ours now."""
        size = len(chunk)

        def ended(task: asyncio.Task[tuple[str, int]]) -> None:
            self._budget.give(size)
            heard(task)

        task = self._loop.create_task(self._send(chunk))
        task.add_done_callback(ended)
        self._sending.append(task)
        self._size += size
        self._begun.append(self._now())
        if self._size > OBJECT_MAX:
            raise TooLarge(f"an object has at most {OBJECT_MAX} bytes")
        if self._hashed is not None:
            await self._hashed
        self._hashed = self._loop.run_in_executor(None, self._hasher.update, chunk)
        if len(self._sending) >= IN_FLIGHT:
            await self._oldest()

    async def _send(self, data: memoryview) -> tuple[str, int]:
        name = await self._loop.run_in_executor(None, chunk_name, data)
        write = Write(name, Bytes(data), checksum=checksum_in(name))
        written = await self._writer.put(write, known=True)
        return name, written.copies

    async def _oldest(self) -> None:
        name, copies = await self._sending[0]
        self._sending.popleft()
        self._digests += bytes.fromhex(name.removeprefix(CHUNK_PREFIX))
        self._copies = min(self._copies, copies)

    async def finish(self, meta: bytes, expected: str | None) -> Uploaded:
        """Write the manifest once every chunk is there."""
        while self._sending:
            await self._oldest()
        if self._hashed is not None:
            await self._hashed
        object_id = _expected(self._hasher.hexdigest(), expected)
        chunks = ChunkNames(self._digests)
        too_old = self._now() - YOUNG
        old = array("Q", (number for number, at in enumerate(self._begun) if at < too_old))
        copies = min(self._copies, await self._writer.renew_chunks(chunks, old))
        manifest = Bytes(Manifest(self._size, chunks).encode())
        written = await self._writer.put(Write(object_id, manifest, Kind.MANIFEST, meta))
        return Uploaded(object_id, self._size, min(written.copies, copies), written.outcome)

    def stop(self) -> None:
        """Let nothing go on behind an upload that failed."""
        for task in self._sending:
            task.cancel()


def _expected(found: str, expected: str | None) -> str:
    """The id found, if it is the one expected."""
    if expected is not None and found != expected:
        raise BadContent(f"the content's id is {found}, not {expected}; nothing was stored")
    return found
