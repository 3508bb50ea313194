# ruff: noqa: D102
"""Engines of the former contract behind the present one, until each has been replaced."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dolmen.names import checksum_of, is_chunk_name
from dolmen.payload import read_whole
from dolmen.record import Kind
from dolmen.resolve import check, check_content, check_key
from dolmen.store import (
    EVERYTHING,
    IDENTITY,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    Condition,
    Failed,
    Listing,
    Put,
    Range,
    Remove,
    Write,
)


class Adapted:
    """An engine with `put`, `touch` and `delete` as a store with `write`."""

    def __init__(self, old: Any) -> None:
        self.old = old

    @property
    def capabilities(self) -> Any:
        return self.old.capabilities

    async def write(self, write: Write) -> Put:
        check(write)
        if write.kind == Kind.TOMBSTONE:
            return await self.old.delete(write.name, stamp=write.stamp)
        if write.kind == Kind.TOUCH:
            return await self.old.touch(
                write.name, stamp=write.stamp, checksum=write.checksum, meta=write.metadata
            )
        payload = write.payload
        if is_chunk_name(write.name):
            check_content(write, checksum_of(await read_whole(payload)))
        return await self.old.put(
            write.name,
            payload,
            meta=write.metadata,
            stamp=write.stamp,
            kind=Kind(write.kind),
            checksum=write.checksum,
        )

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        return await self.old.get(name, byte_range=byte_range)

    async def stat(self, name: str) -> BlobInfo:
        return await self.old.stat(name)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        if listing.quarantined:
            async for name in self.old.quarantined():
                yield BlobInfo(name, 0, Kind.BLOB, 0, NO_CHECKSUM)
            return
        async for info in self.old.list(
            partitions=listing.partitions,
            after=listing.after,
            prefix=listing.prefix,
            tombstones=listing.tombstones,
        ):
            yield info

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        return self.old.get_many(names)

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        return self.old.verify_many(names)

    async def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        async def blobs() -> AsyncIterator[Blob]:
            async for write in writes:
                info = BlobInfo(
                    write.name,
                    write.payload.size,
                    write.kind,
                    write.stamp or 0,
                    write.checksum or NO_CHECKSUM,
                    write.metadata,
                )
                yield Blob(info, write.payload)

        async for answer in self.old.put_many(blobs()):
            yield answer

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        return await self.old.remove_many(removes, min_age=min_age, epoch=epoch)

    async def digests(self) -> Any:
        return await self.old.digests()

    async def note(self, key: str, value: bytes) -> None:
        await self.old.note(check_key(key), value)

    async def notes(self) -> dict[str, bytes]:
        notes = await self.old.notes()
        if IDENTITY not in notes:
            await self.old.note(IDENTITY, secrets.token_hex(16).encode())
            notes = await self.old.notes()
        return dict(notes)

    async def condition(self) -> Condition:
        return await self.old.condition()

    async def aclose(self) -> None:
        await self.old.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.old, name)
