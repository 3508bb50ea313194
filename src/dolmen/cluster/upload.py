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
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from dolmen.cluster.budget import Budget
from dolmen.cluster.manifest import CHUNK, OBJECT_MAX, ChunkNames, Manifest
from dolmen.cluster.verify import INLINE
from dolmen.cluster.write import Writer
from dolmen.errors import BadContent, TooLarge
from dolmen.names import CHUNK_PREFIX, chunk_name
from dolmen.payload import CHUNKS, Bytes
from dolmen.record import Kind
from dolmen.store import Outcome

Digest = Literal["sha256", "sha1"]
IN_FLIGHT = 3
"""Chunks of one upload that are being sent at once."""
GRACE = 24 * 3600
"""Seconds for which garbage collection leaves a chunk alone that no manifest names."""
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


async def upload(
    writer: Writer,
    source: Source,
    budget: Budget,
    *,
    meta: bytes = b"",
    expected_id: str | None = None,
    digest: Digest = "sha256",
    now: Callable[[], float] = time.monotonic,
) -> Uploaded:
    """Store a body as it arrives.

    Raises `BadContent` when it has not the id expected, and nothing is stored then but
    chunks nobody names; `NoCopies`, `TooLarge`, and what receiving raises.
    """
    left = source.length
    if left is not None and left > OBJECT_MAX:
        raise TooLarge(f"{left} bytes are more than an object can have ({OBJECT_MAX})")
    data, following = await _receive(source, budget, b"", left)
    if not following and (left is None or left <= CHUNK):
        try:
            return await upload_small(
                writer, data, meta=meta, expected_id=expected_id, digest=digest
            )
        finally:
            budget.give(len(data))
    large = _Large(writer, budget, digest, now)
    try:
        while True:
            await large.add(data)
            left = None if left is None else left - len(data)
            if not (following if left is None else left):
                break
            data, following = await _receive(source, budget, following, left)
        return await large.finish(meta, expected_id)
    finally:
        large.stop()


async def _receive(
    source: Source, budget: Budget, begun: bytes, left: int | None
) -> tuple[memoryview, bytes]:
    """The next chunk, which begins with bytes received before, and where the length of the
    body is not known the byte after it. The caller gives the budget of the chunk back.
    """
    size = CHUNK if left is None else min(CHUNK, left)
    await budget.take(size)
    try:
        data = (CHUNKS.take() if size > INLINE else memoryview(bytearray(size)))[:size]
        data[: len(begun)] = begun
        got = len(begun) + await source.receive_into(data[len(begun) :])
        following = bytearray(left is None and got == CHUNK)
        if following:
            following = following[: await source.receive_into(memoryview(following))]
        if left is not None and got < size:
            raise BadContent(f"the body ended {left - got} bytes early")  # noqa: TRY301
    except BaseException:
        budget.give(size)
        raise
    budget.give(size - got)
    return data[:got], bytes(following)


async def upload_small(
    writer: Writer,
    data: bytes | memoryview,
    *,
    meta: bytes = b"",
    expected_id: str | None = None,
    digest: Digest = "sha256",
) -> Uploaded:
    """Store an object that is in memory, of up to a chunk's size."""
    hasher = hashlib.sha256() if digest == "sha256" else hashlib.sha1(usedforsecurity=False)
    if len(data) <= INLINE:
        hasher.update(data)
    else:
        await asyncio.get_running_loop().run_in_executor(None, hasher.update, data)
    found = hasher.hexdigest()
    if expected_id is not None:
        _expect(found, expected_id)
    written = await writer.put(found, Bytes(data), meta)
    return Uploaded(found, len(data), written.copies, written.outcome)


async def make_young(writer: Writer, chunks: Sequence[str], size: int, which: Sequence[int]) -> int:
    """Make sure that these chunks of an object of `size` bytes are there, and young.

    Returns the copies of the one that has fewest. Raises `NoCopies` for one that is gone.
    """
    return await writer.renew_chunks(
        chunks, which, lambda number: min(CHUNK, size - number * CHUNK)
    )


class _Large:
    """An object of several chunks on its way in."""

    def __init__(
        self, writer: Writer, budget: Budget, digest: Digest, now: Callable[[], float]
    ) -> None:
        self._writer, self._budget, self._now = writer, budget, now
        self._hasher = hashlib.new(digest, usedforsecurity=False)
        self._loop = asyncio.get_running_loop()
        self._hashed: asyncio.Future[None] | None = None
        self._sending: deque[asyncio.Task[tuple[str, int]]] = deque()
        self._size = 0
        self._digests = bytearray()
        self._begun: array[float] = array("d")
        self._copies = 255

    async def add(self, chunk: memoryview) -> None:
        """Hash a chunk into the whole, in order, and begin to send it. Its budget is ours now."""
        task = self._loop.create_task(self._send(chunk))
        self._sending.append(task)
        task.add_done_callback(self._sent(len(chunk)))
        self._size += len(chunk)
        self._begun.append(self._now())
        if self._size > OBJECT_MAX:
            raise TooLarge(f"an object has at most {OBJECT_MAX} bytes")
        if self._hashed is not None:
            await self._hashed
        self._hashed = self._loop.run_in_executor(None, self._hasher.update, chunk)
        if len(self._sending) >= IN_FLIGHT:
            await self._oldest()

    def _sent(self, size: int) -> Callable[[asyncio.Task[tuple[str, int]]], None]:
        def ended(task: asyncio.Task[tuple[str, int]]) -> None:
            self._budget.give(size)
            if not task.cancelled():
                task.exception()  # whoever waits for it hears of it; nobody may wait any more

        return ended

    async def _send(self, data: memoryview) -> tuple[str, int]:
        name = await self._loop.run_in_executor(None, chunk_name, data)
        checksum = bytes.fromhex(name[-64:-32])
        written = await self._writer.put(name, Bytes(data), checksum=checksum, known=True)
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
        object_id = self._hasher.hexdigest()
        _expect(object_id, expected)
        chunks = ChunkNames(self._digests)
        too_old = self._now() - YOUNG
        old = array("Q", (number for number, at in enumerate(self._begun) if at < too_old))
        copies = min(self._copies, await make_young(self._writer, chunks, self._size, old))
        manifest = Bytes(Manifest(self._size, chunks).encode())
        written = await self._writer.put(object_id, manifest, meta, kind=Kind.MANIFEST)
        return Uploaded(object_id, self._size, min(written.copies, copies), written.outcome)

    def stop(self) -> None:
        """Let nothing go on behind an upload that failed."""
        for task in self._sending:
            task.cancel()


def _expect(found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise BadContent(f"the content's id is {found}, not {expected}; nothing was stored")
