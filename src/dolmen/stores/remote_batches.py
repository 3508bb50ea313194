"""Which writes go to a blob server together, as records in one request, and which alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dolmen.names import checksum_of
from dolmen.record import Kind
from dolmen.store import NO_CHECKSUM, Blob, BlobInfo, Write

NAMES = 2048
"""How many blobs are asked for, or partitions listed, in one request."""
_BATCH = 8 << 20
"""How many bytes of small blobs go in one request."""
_LARGE = 1 << 20
"""From this size on a blob is put by itself: its bytes are copied less often than in a record."""


def as_blob(write: Write) -> Blob:
    """The blob that a stamped write in memory carries."""
    data, checksum = write.payload.whole or b"", write.checksum
    if checksum is None:
        checksum = NO_CHECKSUM if write.kind == Kind.TOMBSTONE else checksum_of(data)
    info = BlobInfo(write.name, len(data), write.kind, write.stamp or 0, checksum, write.metadata)
    return Blob(info, write.payload)


def goes_alone(write: Write) -> bool:
    """Whether a write takes a request of its own: only what carries a stamp is a record."""
    payload = write.payload
    return payload.whole is None or payload.size >= _LARGE or write.stamp is None


async def in_batches(writes: AsyncIterator[Write]) -> AsyncIterator[list[Write]]:
    """Small writes in lists of bounded size, large ones alone, in order."""
    batch: list[Write] = []
    size = 0
    async for write in writes:
        if goes_alone(write):
            if batch:
                yield batch
                batch, size = [], 0
            yield [write]
            continue
        batch.append(write)
        size += write.payload.size
        if len(batch) >= NAMES or size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
