"""The blob store above an ordered key-value store: the whole contract, once for every engine.

A write is a change of one entry (`keyed_entries`), decided by `dolmen.resolve`. Data of up to
64 KiB lies in the entry, that of larger blobs in parts (`keyed_parts`).

Bytes are checked before they are handed out. A copy that fails is quarantined: it stays,
answers as `Corrupt`, and leaves lists and digests until a write replaces it.

Read first: `dolmen.store`, `dolmen.resolve`, `dolmen.stores.driver`,
`dolmen.stores.keyed_layout`, `dolmen.stores.keyed_parts`, `dolmen.stores.keyed_entries`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from dolmen.closing import closing
from dolmen.digests import Digests, Slot, entry_hash
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
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne
from dolmen.stores.driver import Change, Driver, Refused
from dolmen.stores.keyed_entries import Entries
from dolmen.stores.keyed_layout import (
    END,
    INLINE,
    NOTES,
    Entry,
    decode_note,
    encode_note,
    entry_key,
    name_in,
    partition_in,
    partition_key,
)
from dolmen.stores.keyed_parts import Parts

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
        self._parts = Parts(driver, now)
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
        if write.kind == Kind.TOUCH:
            return await self._touch(write)
        info = BlobInfo(write.name, write.payload.size, write.kind, 0, NO_CHECKSUM)
        if info.size > self.capabilities.largest:
            raise TooLarge(
                f"{write.name} is {info.size} bytes, more than the {self.capabilities.largest} "
                "that this store keeps: upload it through an API server, which cuts it into chunks"
            )
        if info.size > INLINE:
            return await self._write_large(write, info)
        body = await read_whole(write.payload)
        if write.kind != Kind.TOMBSTONE:
            info.checksum = checksum_of(body)
            check_content(write, info.checksum)
        return (await self._put(write, Entry(info, body=body)))[0]

    async def _put(self, write: Write, entry: Entry, mark: bytes | None = None) -> tuple[Put, bool]:
        """Carry out a write of this entry; returns the answer and whether the entry is kept."""

        async def decide(current: Entry | None) -> tuple[tuple[Put, bool], Entry | None]:
            info, damaged = (current.info, current.damaged) if current else (None, False)
            action, put = resolve(
                write, info, checksum=entry.info.checksum, damaged=damaged, clock=self._clock
            )
            if action is Action.KEEP:
                return (put, False), current
            # The same content is written anew as well, so it is sound whatever was there.
            return (put, True), entry.sealed(put.stamp, int(self._now()), write.metadata)

        grows = write.kind != Kind.TOMBSTONE
        return await self._entries.change(write.name, decide, guess=True, grows=grows, mark=mark)

    async def _write_large(self, write: Write, info: BlobInfo) -> Put:
        upload, kept = self._parts.begin(write.name, info.size), False
        try:
            await self._parts.send(upload, write.payload)
            info.checksum = upload.checksum
            check_content(write, info.checksum)
            entry = Entry(info, upload.id, body=bytes(upload.sums))
            put, kept = await self._put(write, entry, upload.mark)
            return put
        finally:
            if not kept:  # or nobody knows whether: an entry that refers to it has no mark
                self._parts.give_up(upload)

    async def _touch(self, write: Write) -> Put:
        read: list[Entry] = []

        async def decide(current: Entry | None) -> tuple[Put, Entry | None]:
            info, damaged = (current.info, current.damaged) if current else (None, False)
            checksum = write.checksum or NO_CHECKSUM
            action, put = resolve(
                write, info, checksum=checksum, damaged=damaged, clock=self._clock
            )
            if action is Action.KEEP or current is None:
                return put, current
            read[:] = [current]
            async with closing(self._parts.read(current, 0, current.info.size)) as pieces:
                async for _ in pieces:
                    pass
            return put, current.sealed(put.stamp, int(self._now()), write.metadata)

        try:
            return await self._entries.change(write.name, decide, whole=True, grows=False)
        except Corrupt as error:
            if read:
                await self._quarantine(read[0])
            raise NotFound(f"{write.name} is here, but damaged") from error

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`."""

        async def decide(current: Entry | None) -> tuple[bool, Entry | None]:
            info = current.info if current else None
            stamp, now = remove.if_stamp, self._now()
            removed = may_remove(info, if_stamp=stamp, min_age=min_age, now=now)
            return removed, None if removed else current

        return await self._entries.change(check_name(remove.name), decide, grows=False)

    async def _quarantine(self, damaged: Entry) -> None:
        """Take a damaged copy out of lists and digests, unless it was replaced meanwhile."""

        async def decide(current: Entry | None) -> tuple[None, Entry | None]:
            if current is None or current.front != damaged.front or current.damaged:
                return None, current
            if current.upload == NOBODY:
                with suppress(Corrupt):
                    current.check_data()
                    return None, current  # only what was read was damaged
            info, marked = current.info, replace(current, damaged=True)
            return None, marked.sealed(info.stamp, info.arrived, info.metadata)

        with suppress(DolmenError):  # whoever reads it learns that it is damaged all the same
            await self._entries.change(damaged.info.name, decide, whole=True, grows=False)

    # Reading

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        entry = _live(name, await self._entries.get(check_name(name), whole=True))
        info, (start, stop) = entry.info, byte_range or (0, entry.info.size)
        if entry.upload != NOBODY:
            stop = min(stop, info.size)
            start = min(start, stop)
            return Blob(info, Stream(stop - start, lambda: self._stream(entry, start, stop)))
        try:
            entry.check_data()
        except Corrupt:
            await self._quarantine(entry)
            raise
        return Blob(info, Bytes(entry.body[start:stop] if byte_range else entry.body))

    async def _stream(self, entry: Entry, start: int, stop: int) -> AsyncIterator[Piece]:
        """The checked bytes of a range; what is found damaged is quarantined."""
        name = entry.info.name
        try:
            async with closing(self._parts.read(entry, start, stop)) as pieces:
                async for piece in pieces:
                    yield piece
        except Corrupt as error:
            current = await self._entries.get(name)
            if current is None or current.upload != entry.upload:
                why = f"{name} was deleted or replaced while it was read"
                raise Unavailable(why) from error
            await self._quarantine(current)
            raise

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        return _live(name, await self._entries.get(check_name(name))).info

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        after, prefix = listing.after, listing.prefix.encode()
        begin = partition_of(after) if after is not None else 0
        chosen = listing.partitions
        wanted = chosen if isinstance(chosen, range) else frozenset(chosen)
        for first, last in _spans(partition for partition in chosen if partition >= begin):
            start = partition_key(b"e", first)
            if after is not None and first == begin:
                start = entry_key(begin, after) + b"\0"
            stop = partition_key(b"e", last) + END
            async with closing(self._entries.scan(start, stop)) as entries:
                async for key, entry in entries:
                    if not key.startswith(prefix, 5) or partition_in(key) not in wanted:
                        continue
                    damaged = entry is None or entry.damaged
                    info = (
                        entry.info
                        if entry
                        else BlobInfo(name_in(key), 0, Kind.BLOB, 0, NO_CHECKSUM)
                    )
                    shown = listing.tombstones or info.kind != Kind.TOMBSTONE
                    if damaged == listing.quarantined and shown:
                        yield info

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        if not self.capabilities.digests:
            return await self._digests_by_listing()
        encoded: list[bytes] = []
        async with closing(self._driver.scan(b"d0000", b"dffff" + END)) as pages:
            async for page in pages:
                for key, value in page:
                    encoded += (partition_in(key).to_bytes(2, "little"), value)
        return Digests.decode(b"".join(encoded))

    async def _digests_by_listing(self) -> Digests:
        slots: defaultdict[int, Slot] = defaultdict(Slot)
        async with closing(self.list(Listing(tombstones=True))) as infos:
            async for info in infos:
                name, kind = info.name.encode(), info.kind
                hashed = entry_hash(name, info.stamp, kind, info.checksum, info.metadata)
                slots[partition_of(info.name)].add(info.size, hashed)
        return Digests(slots)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        at, new = encode_note(check_key(key), value)
        found = await self._driver.get([at])
        while (there := await self._driver.swap([Change(at, found[0], new)])) is not None:
            found = there

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`. A new store gets its identity with the first call."""
        notes: dict[str, bytes] = {}
        async with closing(self._driver.scan(NOTES, NOTES + END)) as pages:
            async for page in pages:
                notes.update(decode_note(value) for _, value in page)
        if IDENTITY not in notes:
            at, chosen = encode_note(IDENTITY, self._identity)
            await self._driver.swap([Change(at, None, chosen)])
            return await self.notes()
        self._identity = notes[IDENTITY]  # an engine that forgets is told the same again
        return notes

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        return await self._driver.condition()

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        await self._parts.aclose()
        await self._driver.aclose()


def _live(name: str, entry: Entry | None) -> Entry:
    if entry is None:
        raise NotFound(f"{name} is not here")
    if entry.info.kind == Kind.TOMBSTONE:
        raise NotFound(f"{name} was deleted", stamp=entry.info.stamp)
    if entry.damaged:
        raise Corrupt(f"this copy of {name} is damaged: replicate it from another store")
    return entry


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
