"""The blob store above an ordered key-value store: the whole contract, once for every engine.

A write reads the entry of its name and the digest of its partition, lets
`dolmen.resolve` decide, and swaps both in one step if they still are what was read; else
it decides again on what is there now. Writes of one partition in one process take turns, so
only other processes ever interfere. A first attempt reads nothing: it takes the name to be
free and the digest to be what it was after the last write, and a swap that fails brings what
is there.

Data of up to 64 KiB lies in the entry, that of larger blobs in parts (`keyed_parts`).

Bytes are checked before they are handed out. A copy that fails is quarantined: it stays,
answers as `Corrupt`, and leaves lists and digests until a write replaces it.

Read first: `dolmen.store`, `dolmen.resolve`, `dolmen.stores.driver`,
`dolmen.stores.keyed_layout`, `dolmen.stores.keyed_parts`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, TypeVar
from weakref import WeakValueDictionary

from dolmen.closing import closing
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import (
    BadSetting,
    Corrupt,
    DolmenError,
    NotFound,
    TooLarge,
    Unavailable,
)
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
from dolmen.stores.keyed_layout import (
    END,
    INLINE,
    NOTES,
    Entry,
    decode,
    decode_note,
    decode_slot,
    encode_note,
    encode_slot,
    entry_key,
    front_size,
    mark_key,
    partition_in,
    partition_key,
)
from dolmen.stores.keyed_parts import Parts

_ATTEMPTS = 100
"""How often a change is decided again because another process was faster, each time."""
_GAP = 8
"""Partitions nobody asked for that are scanned sooner than asked around."""
_log = logging.getLogger("dolmen.keyed")
T = TypeVar("T")


class KeyedStore(OneByOne):
    """A blob store above a driver. `now` returns seconds since 1970, `clock` gives stamps.

    Made by `open_keyed`, within a running loop.
    """

    reads_ahead: ClassVar[int] = 64  # entries; of large blobs nothing is read ahead

    def __init__(self, driver: Driver, *, clock: Clock, now: Callable[[], float]) -> None:
        self._driver, self._clock, self._now = driver, clock, now
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._slots: dict[int, bytes | None] = {}
        self._parts = Parts(driver, now)
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
        return await self._change(write.name, decide, guess=True, grows=grows, mark=mark)

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
            return await self._change(write.name, decide, whole=True, grows=False)
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

        return await self._change(check_name(remove.name), decide, grows=False)

    async def _quarantine(self, damaged: Entry) -> None:
        """Take a damaged copy out of lists and digests, unless it was replaced meanwhile."""

        async def decide(current: Entry | None) -> tuple[None, Entry | None]:
            if current is None or current.front != damaged.front or current.damaged:
                return None, current
            info = current.info
            return None, replace(current, damaged=True).sealed(
                info.stamp, info.arrived, info.metadata
            )

        with suppress(DolmenError):  # whoever reads it learns that it is damaged all the same
            await self._change(damaged.info.name, decide, whole=True, grows=False)

    async def _change(
        self,
        name: str,
        decide: Callable[[Entry | None], Awaitable[tuple[T, Entry | None]]],
        *,
        guess: bool = False,
        whole: bool = False,
        grows: bool = True,
        mark: bytes | None = None,
    ) -> T:
        """Replace the entry of a name by what `decide` makes of it; returns its answer.

        What `decide` returns unchanged is kept. With `guess` it is first asked about a free
        name, without reading; `whole` when it needs the body too. `mark` is that of the upload
        the new entry refers to.
        """
        partition = partition_of(name)
        key, slot_key = entry_key(partition, name), partition_key(b"d", partition)
        keys = [key, slot_key] if self.capabilities.digests else [key]
        async with self._turns.setdefault(partition, asyncio.Lock()):
            if guess:
                found: Sequence[bytes | None] = [None, self._slots.get(partition)]
            else:
                found = await self._driver.get(keys, head=not whole)
            for _ in range(_ATTEMPTS):
                current = await self._entry(key, found[0])
                answer, new = await decide(current)
                if new is current:
                    return answer
                old = current.front if current else None
                changes = [Change(key, old, new.encode() if new else None)]
                if self.capabilities.digests:
                    slot = _recounted(found[1], current, new)
                    changes.append(Change(slot_key, found[1], slot))
                if mark is not None and new is not None:
                    changes.append(Change(mark_key(partition, new.upload), mark, None))
                if current and current.upload not in (NOBODY, new.upload if new else NOBODY):
                    changes.append(self._parts.replaced(current))
                there = await self._driver.swap(changes, grows=grows)
                if there is None:
                    if self.capabilities.digests:
                        self._slots[partition] = slot
                    return answer
                if mark is not None and there[len(keys)] != mark:
                    raise Unavailable(f"the upload of {name} took over a day; start again")
                found = await self._driver.get(keys) if whole else there
        raise Unavailable(f"{name} was changed by others {_ATTEMPTS} times meanwhile; try again")

    # Reading

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        [value] = await self._driver.get([entry_key(partition_of(check_name(name)), name)])
        entry = _live(name, decode(value) if value else None)
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
            key = entry_key(partition_of(name), name)
            current = await self._entry(key, (await self._driver.get([key], head=True))[0])
            if current is None or current.upload != entry.upload:
                why = f"{name} was deleted or replaced while it was read"
                raise Unavailable(why) from error
            await self._quarantine(current)
            raise

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        key = entry_key(partition_of(check_name(name)), name)
        [value] = await self._driver.get([key], head=True)
        return _live(name, await self._entry(key, value)).info

    async def _entry(self, key: bytes, value: bytes | None) -> Entry | None:
        """The entry of a key whose value is this, or begins so."""
        if value is not None and front_size(value) > len(value):
            [value] = await self._driver.get([key])
        return decode(value) if value is not None else None

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
            async with closing(self._driver.scan(start, stop, head=True)) as pages:
                async for page in pages:
                    for key, value in page:
                        if not key.startswith(prefix, 5) or partition_in(key) not in wanted:
                            continue
                        entry = await self._entry(key, value)
                        if entry is None or entry.damaged != listing.quarantined:
                            continue
                        if listing.tombstones or entry.info.kind != Kind.TOMBSTONE:
                            yield entry.info

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


def _recounted(value: bytes | None, old: Entry | None, new: Entry | None) -> bytes | None:
    """The digest of a partition after one entry took the place of another."""
    slot = decode_slot(value)
    if old is not None:
        old.count(slot, out=True)
    if new is not None:
        new.count(slot)
    return encode_slot(slot)


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
