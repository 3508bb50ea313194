"""Uploading an object: one blob, or chunks and a manifest.

An object exists when its blob, or its manifest, does; the manifest is written last, when
every chunk has been acknowledged with its copies. Hashing goes on in threads while the next
chunk is received and the one before is being sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from dolmen.cluster.budget import Budget
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.incoming import Chunk, Source
from dolmen.cluster.manifest import CHUNK, OBJECT_MAX, Manifest
from dolmen.errors import BadContent, TooLarge
from dolmen.names import chunk_name
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Outcome

Digest = Literal["sha256", "sha1"]
IN_FLIGHT = 3
"""Chunks of one upload that are being sent at once."""
GRACE = 24 * 3600
"""Seconds for which garbage collection leaves a chunk alone that no manifest names."""
_INLINE = 65_536
"""Up to this size hashing takes less time than handing it to a thread."""


class Uploaded(NamedTuple):
    """An object that is stored: its size in bytes, on how many servers, and what it met there."""

    id: str
    size: int
    copies: int
    outcome: Outcome


async def upload(
    cluster: Cluster,
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
    if source.length is not None and source.length > OBJECT_MAX:
        raise TooLarge(f"{source.length} bytes are more than an object can have ({OBJECT_MAX})")
    first, second = Chunk(budget), Chunk(budget)
    try:
        await first.fill(source)
        if first.size == CHUNK and source.length is None:
            await second.fill(source)  # is there more?
        if second.size or (source.length or 0) > CHUNK:
            large = _Large(cluster, budget, digest, now)
            return await large.run(first, second, source, meta, expected_id)
        return await upload_small(
            cluster, first.data, meta=meta, expected_id=expected_id, digest=digest
        )
    finally:
        first.release()
        second.release()


async def upload_small(
    cluster: Cluster,
    data: bytes | memoryview,
    *,
    meta: bytes = b"",
    expected_id: str | None = None,
    digest: Digest = "sha256",
) -> Uploaded:
    """Store an object that is in memory, of up to a chunk's size."""
    hasher = hashlib.new(digest, usedforsecurity=False)
    if len(data) <= _INLINE:
        hasher.update(data)
    else:
        await asyncio.get_running_loop().run_in_executor(None, hasher.update, data)
    found = hasher.hexdigest()
    _expect(found, expected_id)
    written = await cluster.keep(found, Bytes(data), meta=meta)
    return Uploaded(found, len(data), written.copies, written.outcome)


class _Large:
    """An object of several chunks on its way in."""

    def __init__(
        self, cluster: Cluster, budget: Budget, digest: Digest, now: Callable[[], float]
    ) -> None:
        self._cluster, self._budget, self._now = cluster, budget, now
        self._hasher = hashlib.new(digest, usedforsecurity=False)
        self._loop = asyncio.get_running_loop()
        self._sending: deque[asyncio.Task[tuple[str, int]]] = deque()
        self._chunks: deque[Chunk] = deque()
        self._hashed: asyncio.Future[None] | None = None
        self._names: list[str] = []
        self._copies: list[int] = []

    async def run(
        self, first: Chunk, chunk: Chunk, source: Source, meta: bytes, expected: str | None
    ) -> Uploaded:
        """Send every chunk, then the manifest. `first` is full, `chunk` may be."""
        started, size = self._now(), CHUNK
        try:
            await self._take(first)
            if not chunk.size:
                await chunk.fill(source)
            while chunk.size:
                size += chunk.size
                if size > OBJECT_MAX:
                    raise TooLarge(f"an object has at most {OBJECT_MAX} bytes")
                full = chunk.size == CHUNK
                taken, chunk = chunk, Chunk(self._budget)
                await self._take(taken)
                if not full:
                    break
                await chunk.fill(source)
            while self._sending:
                await self._oldest()
        finally:
            await self._stop()
            chunk.release()
        object_id = self._hasher.hexdigest()
        _expect(object_id, expected)
        if self._now() - started > GRACE / 2:
            await self._renew(size)
        manifest = Bytes(Manifest(size, self._names).encode())
        written = await self._cluster.keep(object_id, manifest, meta=meta, kind=Kind.MANIFEST)
        copies = min(written.copies, *self._copies)
        return Uploaded(object_id, size, copies, written.outcome)

    async def _take(self, chunk: Chunk) -> None:
        """Hash a chunk into the whole, in order, and begin to send it. It is ours from now on."""
        self._chunks.append(chunk)
        if self._hashed is not None:
            await asyncio.shield(self._hashed)
        self._hashed = self._loop.run_in_executor(None, self._hasher.update, chunk.data)
        self._sending.append(asyncio.create_task(self._send(chunk)))
        if len(self._sending) >= IN_FLIGHT:
            await self._oldest()

    async def _send(self, chunk: Chunk) -> tuple[str, int]:
        data = chunk.data
        try:
            name = await self._loop.run_in_executor(None, chunk_name, data)
            checksum = bytes.fromhex(name[-64:])[:16]
            written = await self._cluster.keep(name, Bytes(data), checksum=checksum, known=True)
            return name, written.copies
        finally:
            chunk.release()

    async def _oldest(self) -> None:
        name, copies = await self._sending[0]
        self._sending.popleft()
        self._chunks.popleft()
        self._names.append(name)
        self._copies.append(copies)

    async def _stop(self) -> None:
        """Let nothing go on behind an upload that failed."""
        for task in self._sending:
            task.cancel()
        await _ended(*self._sending)
        if self._hashed is not None:
            await _ended(self._hashed)
        for chunk in self._chunks:  # also of those that were stopped before they began
            chunk.release()

    async def _renew(self, size: int) -> None:
        """Raise the stamps of all chunks: the first are old enough to be near being swept."""
        for number, name in enumerate(self._names):
            length = min(CHUNK, size - number * CHUNK)
            if not await self._cluster.renew(name, length):
                raise BadContent(
                    f"a chunk of this upload ({name}) was lost while it went on; upload it again"
                )


async def _ended(*futures: asyncio.Future[Any]) -> None:
    """Wait for work that can't be stopped, or was just told to stop, even while being cancelled."""
    waiting = asyncio.gather(*futures, return_exceptions=True)
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            continue


def _expect(found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise BadContent(f"the content's id is {found}, not {expected}; nothing was stored")
