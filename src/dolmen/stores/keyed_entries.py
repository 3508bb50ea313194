"""Entries and the parts of large blobs, above a driver: changed together, in one step.

A change reads the entry of a name and the digest of its partition, lets the caller
decide, and swaps both in one step if they still are what was read; else the caller decides
again on what is there now. Changes of one partition in one process take turns, so only other
processes ever interfere.

Parts are written before their entry and deleted after it. Every part is either referred to by
an entry or has a *mark*, whatever is broken off when. An upload begins with a mark that is due
in a day. The swap that makes an entry refer to the parts takes the mark away; one that replaces
a large blob leaves a mark for the old parts, due an hour later for the sake of those who read
them. What is due is deleted when the store is opened and every ten minutes. The mark is claimed
first, so an upload that took over a day fails whole.

Read first: `dolmen.stores.driver`, `dolmen.stores.keyed_layout`, `dolmen.stores.parts`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

from dolmen.closing import closing
from dolmen.digests import Slot
from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Payload
from dolmen.record import NOBODY
from dolmen.repeating import Repeating
from dolmen.stores.driver import Change, Driver
from dolmen.stores.keyed_layout import (
    END,
    MARK,
    Entry,
    decode,
    decode_slot,
    encode_slot,
    entry_key,
    front_size,
    mark_key,
    part_key,
    partition_in,
    partition_key,
)
from dolmen.stores.parts import Parts

UPLOAD_LIFE = 86_400
"""Seconds an upload may take."""
LINGER = 3_600
"""Seconds for which the parts of what was replaced stay for those who read them."""
_SWEEP_EVERY = 600.0
_ATTEMPTS = 100
"""How often a change is decided again because another process was faster, each time."""
_log = logging.getLogger("dolmen.keyed")
T = TypeVar("T")
Decide = Callable[[Entry | None], Awaitable[tuple[T, Entry | None]]]
"""Gets what is kept under a name; returns an answer and what is to be kept, the same for no change.
"""


@dataclass(slots=True)
class Upload:
    """The parts of one blob that is being written; `mark` is what its mark says."""

    partition: int
    mark: bytes
    id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    sent: list[asyncio.Future[None]] = field(default_factory=list)


class KeyedParts:
    """All parts of a store. `now` returns seconds since 1970."""

    def __init__(self, driver: Driver, now: Callable[[], float]) -> None:
        self._driver, self._now = driver, now
        self._parts = Parts(driver.part_size, at_once=4)
        self._tidying: set[asyncio.Task[None]] = set()
        self._sweeping = Repeating(self._sweep)

    def begin(self, name: str, size: int) -> Upload:
        """An upload of so many bytes, of which nothing is kept yet."""
        return Upload(partition_of(name), self._mark(size, UPLOAD_LIFE))

    async def send(self, upload: Upload, payload: Payload) -> bytes:
        """Keep the parts of a payload; returns its checksum."""
        partition = upload.partition
        try:
            mark = Change(mark_key(partition, upload.id), None, upload.mark)
            await self._driver.swap([mark])
        except OutcomeUnknown as error:  # nobody sees a mark
            raise Unavailable(str(error)) from error

        def keep(number: int, part: memoryview) -> asyncio.Future[None]:
            kept = self._driver.set(part_key(partition, upload.id, number), part)
            upload.sent.append(asyncio.ensure_future(kept))
            return asyncio.shield(upload.sent[-1])  # who gives up has to know what came of it

        return await self._parts.send(payload, keep)

    def give_up(self, upload: Upload) -> None:
        """Delete the parts in the background, unless an entry refers to them after all."""
        task = asyncio.get_running_loop().create_task(self._tidy(upload))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    def replaced(self, entry: Entry) -> Change:
        """The change that marks the parts of an entry that goes."""
        key = mark_key(partition_of(entry.info.name), entry.upload)
        return Change(key, None, self._mark(entry.info.size, LINGER))

    def read(self, entry: Entry, start: int, stop: int) -> AsyncIterator[memoryview]:
        """The checked bytes of a range of an entry with parts; raises `Corrupt`."""
        name, partition = entry.info.name, partition_of(entry.info.name)

        async def fetch(number: int) -> bytes | None:
            [part] = await self._driver.get([part_key(partition, entry.upload, number)])
            return part

        return self._parts.read(fetch, name, entry.info.size, start, stop)

    async def sweep(self) -> None:
        """Delete what is due."""
        async with closing(self._driver.scan(b"u0000", b"uffff" + END)) as pages:
            async for page in pages:
                for key, mark in page:
                    if MARK.unpack(mark)[0] <= self._now():
                        await self._drop(key, mark)

    async def aclose(self) -> None:
        """Wait for what tidies up."""
        await self._sweeping.aclose()
        await asyncio.gather(*self._tidying)

    def _mark(self, size: int, life: int) -> bytes:
        return MARK.pack(int(self._now()) + life, self._parts.count(size))

    async def _tidy(self, upload: Upload) -> None:
        answers = await asyncio.gather(*upload.sent, return_exceptions=True)
        if any(isinstance(answer, OutcomeUnknown) for answer in answers):
            return  # one may still arrive: the sweep deletes them when they are due
        try:
            await self._drop(mark_key(upload.partition, upload.id), upload.mark)
        except DolmenError as error:
            _log.info("parts of an upload stay until they are due: %s", error)

    async def _sweep(self) -> float:
        try:
            await self.sweep()
        except DolmenError as error:
            _log.info("parts that are due stay for now: %s", error)
        return _SWEEP_EVERY

    async def _drop(self, key: bytes, mark: bytes) -> None:
        """Delete the parts of this mark, unless an entry refers to them by now."""
        partition, upload = partition_in(key), bytes.fromhex(key[5:].decode())
        _, count = MARK.unpack(mark)
        claimed = MARK.pack(0, count)
        if await self._driver.swap([Change(key, mark, claimed)], grows=False) is not None:
            return
        await self._driver.delete([part_key(partition, upload, at) for at in range(count)])
        await self._driver.swap([Change(key, claimed, None)], grows=False)


class Entries:
    """All entries of a store, and the digests of their partitions."""

    def __init__(self, driver: Driver, parts: KeyedParts) -> None:
        self._driver, self._parts = driver, parts
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._slots: dict[int, bytes | None] = {}

    async def get(self, name: str, *, whole: bool = False) -> Entry | None:
        """The entry of a name, with its body where it is wanted."""
        key = entry_key(partition_of(name), name)
        [value] = await self._driver.get([key], head=not whole)
        return await self._read(key, value)

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Entry]:
        """The entries under the keys in this span, without their bodies."""
        async with closing(self._driver.scan(start, stop)) as pages:
            async for page in pages:
                for key, value in page:
                    if (entry := await self._read(key, value)) is not None:
                        yield entry

    async def change(
        self,
        name: str,
        decide: Decide[T],
        *,
        guess: bool = False,
        grows: bool = False,
        mark: bytes | None = None,
    ) -> T:
        """Replace the entry of a name by what `decide` makes of it; returns its answer.

        With `guess`, `decide` is asked first about a free name, without a look at the server,
        and may not keep that; what it is asked later has no body then. `mark` is that of the
        upload the new entry refers to.
        """
        partition = partition_of(name)
        key, slot_key = entry_key(partition, name), partition_key(b"d", partition)
        counts = self._driver.capabilities.digests
        keys = [key, slot_key] if counts else [key]
        async with self._turns.setdefault(partition, asyncio.Lock()):
            found: Sequence[bytes | None] = [None, self._slots.get(partition)]
            if not guess:
                found = await self._driver.get(keys)
            for _ in range(_ATTEMPTS):
                current = await self._read(key, found[0])
                # Nobody knows what a lost one was, so anything may replace it.
                known = None if current and current.lost else current
                answer, new = await decide(known)
                if new is known:
                    return answer
                old = current.front if current else None
                changes = [Change(key, old, new.encode() if new else None)]
                if counts:
                    lost = current is not None and current.lost
                    slot = await self._count(partition) if lost else decode_slot(found[1])
                    if current is not None:
                        current.count(slot, out=True)
                    if new is not None:
                        new.count(slot)
                    counted = encode_slot(slot)
                    changes.append(Change(slot_key, found[1], counted))
                if mark is not None and new is not None:
                    changes.append(Change(mark_key(partition, new.upload), mark, None))
                if current and current.upload not in (NOBODY, new.upload if new else NOBODY):
                    changes.append(self._parts.replaced(current))
                there = await self._driver.swap(changes, grows=grows)
                if there is None:
                    if counts:
                        self._slots[partition] = counted
                    return answer
                if mark is not None and there[len(keys)] != mark:
                    raise Unavailable(f"the upload of {name} took over a day; start again")
                found = there if guess else await self._driver.get(keys)
        raise Unavailable(f"{name} was changed by others {_ATTEMPTS} times meanwhile; try again")

    async def _read(self, key: bytes, value: bytes | None) -> Entry | None:
        """The entry whose value is this, or begins so."""
        if value is not None and front_size(value) > len(value):
            [value] = await self._driver.get([key])
        return decode(key, value) if value is not None else None

    async def _count(self, partition: int) -> Slot:
        """The digest of a partition, from its entries."""
        slot, start = Slot(), partition_key(b"e", partition)
        async with closing(self.scan(start, start + END)) as entries:
            async for entry in entries:
                entry.count(slot)
        return slot
