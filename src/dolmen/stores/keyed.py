"""The blob store above an ordered key-value store: the whole contract, once for every engine.

A write reads the entry of its name and the digest of the partition, is decided by
`dolmen.resolve`, and swaps both in one step if they still are what was read; else it is decided
again on what is there now.

Bytes are checked before they are handed out. A copy that fails is quarantined: it stays,
answers as `Corrupt`, and leaves lists and digests until a write replaces it.

Read first: `dolmen.store`, `dolmen.resolve`, `dolmen.stores.driver`,
`dolmen.stores.keyed_entries` (what lies there), `dolmen.stores.keyed_parts` (large blobs).
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from dolmen.closing import closing
from dolmen.digests import Digests
from dolmen.errors import BadSetting, Corrupt, DolmenError, NotFound, TooLarge, Unavailable
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Piece, Stream, read_whole
from dolmen.record import NOBODY, Kind
from dolmen.resolve import Action, check, check_content, check_key, may_remove, resolve
from dolmen.stamps import Clock
from dolmen.store import (
    EVERYTHING,
    IDENTITY,
    NO_CHECKSUM,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Listing,
    Outcome,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne
from dolmen.stores.driver import Change, Driver, Refused
from dolmen.stores.keyed_entries import END, Entries, Entry, entry_key
from dolmen.stores.keyed_parts import KeyedParts, Upload

INLINE = 65_536
"""The most bytes of data that lie in the entry itself."""
_NOTES = b"n0000"
"""The key of all notes: JSON, the values in hex."""
_GAP = 8
"""Partitions nobody asked for that are scanned sooner than asked around."""
_log = logging.getLogger("dolmen.keyed")


class KeyedStore(OneByOne):
    """A blob store above a driver. `now` returns seconds since 1970, `clock` gives stamps.

    Made by `open_keyed`, within a running loop.
    """

    reads_ahead: ClassVar[int] = 64  # entries; of large blobs nothing is read ahead

    def __init__(self, driver: Driver, *, clock: Clock, now: Callable[[], float]) -> None:
        self._driver, self._clock, self._now = driver, clock, now
        self._parts = KeyedParts(driver, now)
        self._entries = Entries(driver, self._parts)
        self._identity = secrets.token_hex(16).encode()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the driver."""
        return self._driver.capabilities

    # Writing

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`."""
        check(write)
        info = BlobInfo(write.name, write.payload.size, write.kind, 0, NO_CHECKSUM)
        if info.size > self.capabilities.largest:
            raise TooLarge(
                f"{write.name} is {info.size} bytes, more than the {self.capabilities.largest} "
                "that this store keeps: upload it through an API server, which cuts it into chunks"
            )
        if info.size > INLINE:
            return await self._write_large(write, info)
        entry = Entry(info, body=await read_whole(write.payload))
        if write.kind in (Kind.BLOB, Kind.MANIFEST):
            info.checksum = checksum_of(entry.body)
            check_content(write, info.checksum)
        try:
            return await self._carry_out(write, entry)
        except Corrupt as error:
            if write.kind != Kind.TOUCH:
                raise
            await self._quarantine(write.name)
            raise NotFound(f"{write.name} is here, but damaged") from error

    async def _write_large(self, write: Write, info: BlobInfo) -> Put:
        upload, put = self._parts.begin(write.name, info.size), None
        try:
            info.checksum = await self._parts.send(upload, write.payload)
            check_content(write, info.checksum)
            put = await self._carry_out(write, Entry(info, upload.id), upload)
            return put
        finally:
            if put is None or put.outcome is Outcome.SUPERSEDED:
                self._parts.give_up(upload)

    async def _carry_out(self, write: Write, entry: Entry, upload: Upload | None = None) -> Put:
        """Decide a write of this entry, whose parts are those of the upload."""
        touches = write.kind == Kind.TOUCH
        checksum = write.checksum or NO_CHECKSUM if touches else entry.info.checksum

        async def decide(current: Entry | None) -> tuple[Put, Entry | None]:
            info, damaged = (current.info, current.damaged) if current else (None, False)
            action, put = resolve(
                write, info, checksum=checksum, damaged=damaged, clock=self._clock
            )
            if action is Action.KEEP:
                return put, current
            kept = entry  # the same content anew as well, so it is sound whatever was there
            if touches and current is not None:
                kept = current
                await self._check(current)
            return put, kept.sealed(put.stamp, int(self._now()), write.metadata)

        grows = write.kind in (Kind.BLOB, Kind.MANIFEST)
        return await self._entries.change(
            write.name, decide, guess=not touches, grows=grows, upload=upload
        )

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`."""

        async def decide(current: Entry | None) -> tuple[bool, Entry | None]:
            info = current.info if current else None
            stamp, now = remove.if_stamp, self._now()
            removed = may_remove(info, if_stamp=stamp, min_age=min_age, now=now)
            return removed, None if removed else current

        return await self._entries.change(check_name(remove.name), decide)

    async def _check(self, entry: Entry) -> None:
        """Raise `Corrupt` unless all its data is sound."""
        if entry.upload == NOBODY:
            entry.check_body()
            return
        async with closing(self._pieces(entry, 0, entry.info.size)) as pieces:
            async for _ in pieces:
                pass

    async def _quarantine(self, name: str) -> None:
        """Take a copy out of lists and digests if it is found damaged once more."""

        async def decide(current: Entry | None) -> tuple[None, Entry | None]:
            if current is None or current.damaged:
                return None, current
            try:
                await self._check(current)
            except Corrupt:
                info, marked = current.info, replace(current, damaged=True)
                return None, marked.sealed(info.stamp, info.arrived, info.metadata)
            return None, current

        with suppress(DolmenError):  # whoever reads it learns that it is damaged all the same
            await self._entries.change(name, decide)

    # Reading

    async def _entry(self, name: str, *, whole: bool = False) -> Entry:
        """The entry of a live blob, with its body where it is wanted."""
        check_name(name)
        entry = await self._entries.get(name, whole=whole)
        if entry is None:
            raise NotFound(f"{name} is not here")
        if entry.info.kind == Kind.TOMBSTONE:
            raise NotFound(f"{name} was deleted", stamp=entry.info.stamp)
        if entry.damaged:
            raise Corrupt(f"this copy of {name} is damaged: replicate it from another store")
        return entry

    def _pieces(self, entry: Entry, start: int, stop: int) -> AsyncIterator[memoryview]:
        """The checked bytes of a range of an entry with parts; raises `Corrupt`."""
        return self._parts.read(entry.info.name, entry.upload, entry.info.size, start, stop)

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        entry = await self._entry(name, whole=True)
        info, (start, stop) = entry.info, byte_range or (0, entry.info.size)
        if entry.upload != NOBODY:
            stop = min(stop, info.size)
            start = min(start, stop)
            return Blob(info, Stream(stop - start, lambda: self._stream(entry, start, stop)))
        try:
            entry.check_body()
        except Corrupt:
            await self._quarantine(name)
            raise
        return Blob(info, Bytes(entry.body[start:stop]))

    async def _stream(self, entry: Entry, start: int, stop: int) -> AsyncIterator[Piece]:
        """The checked bytes of a range; what is found damaged is quarantined."""
        name = entry.info.name
        try:
            async with closing(self._pieces(entry, start, stop)) as pieces:
                async for piece in pieces:
                    yield piece
        except Corrupt as error:
            with suppress(NotFound):
                if (await self._entry(name)).upload == entry.upload:
                    await self._quarantine(name)
                    raise
            raise Unavailable(f"{name} was deleted or replaced while it was read") from error

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        return (await self._entry(name)).info

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        after, partitions = listing.after, listing.partitions
        begin = partition_of(after) if after is not None else 0
        wanted = partitions if isinstance(partitions, range) else frozenset(partitions)
        for first, last in _spans(partition for partition in partitions if partition >= begin):
            start = b"e%04x" % first
            if after is not None and first == begin:
                start = entry_key(after) + b"\0"
            async with closing(self._entries.scan(start, b"e%04x" % last + END)) as entries:
                async for entry in entries:
                    info = entry.info
                    shown = listing.tombstones or info.kind != Kind.TOMBSTONE
                    named = info.name.startswith(listing.prefix)
                    chosen = partition_of(info.name) in wanted
                    if shown and named and chosen and entry.damaged == listing.quarantined:
                        yield info

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        return await self._entries.digests()

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        await self._note(check_key(key), value)

    async def _note(self, key: str, value: bytes) -> None:
        while True:
            [old] = await self._driver.get([_NOTES])
            notes = json.loads(old or b"{}")
            if key == IDENTITY and key in notes:  # another process was faster
                return
            new = json.dumps(notes | {key: value.hex()}).encode()
            if await self._driver.swap([Change(_NOTES, old, new)]):
                return

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`. A new store gets its identity with the first call."""
        while True:
            [value] = await self._driver.get([_NOTES])
            notes = {key: bytes.fromhex(note) for key, note in json.loads(value or b"{}").items()}
            if IDENTITY in notes:
                self._identity = notes[IDENTITY]  # an engine that forgets is given the same again
                return notes
            await self._note(IDENTITY, self._identity)

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        return await self._driver.condition()

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        await self._parts.aclose()
        await self._driver.aclose()


def _spans(partitions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending partitions as the first and last ones of spans to be scanned."""
    first = last = -1
    for partition in partitions:
        if first < 0 or partition > last + _GAP:
            if first >= 0:
                yield first, last
            first = partition
        last = partition
    if first >= 0:
        yield first, last


async def open_keyed(
    driver: Driver, *, clock: Clock | None = None, now: Callable[[], float] = time.time
) -> KeyedStore:
    """The store above a driver.

    A server that can't be reached now is no error yet: every request tries again. Raises
    `BadSetting` where it refuses who asks.
    """
    store = KeyedStore(driver, clock=clock or Clock(), now=now)
    try:
        await store.condition()
        await store.notes()
    except Refused as error:
        await store.aclose()
        raise BadSetting(str(error)) from error
    except Unavailable as error:
        _log.warning("%s; opened all the same, every request tries again", error)
    except BaseException:
        await store.aclose()
        raise
    return store
