"""Entries above a driver: reading them, and replacing one together with all that hangs on it.

A change reads the entry of a name and the digest of its partition, lets the caller
decide, and swaps both in one step if they still are what was read; else the caller decides
again on what is there now. Changes of one partition in one process take turns, so only other
processes ever interfere. A change may begin with a guess, that the name is free and the
digest what the last change left: a swap that fails brings what is there.

Read first: `dolmen.stores.driver`, `dolmen.stores.keyed_layout`, `dolmen.stores.keyed_parts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from dolmen.closing import closing
from dolmen.digests import Slot
from dolmen.errors import Corrupt, Unavailable
from dolmen.names import partition_of
from dolmen.record import NOBODY
from dolmen.stores.driver import Change, Driver
from dolmen.stores.keyed_layout import (
    END,
    Entry,
    decode,
    decode_slot,
    encode_slot,
    entry_key,
    front_size,
    mark_key,
    partition_key,
)
from dolmen.stores.keyed_parts import Parts

_ATTEMPTS = 100
"""How often a change is decided again because another process was faster, each time."""
T = TypeVar("T")
Decide = Callable[[Entry | None], Awaitable[tuple[T, Entry | None]]]
"""Gets what is kept under a name; returns an answer and what is to be kept, the same for no change.
"""


class Entries:
    """All entries of a store, and the digests of their partitions."""

    def __init__(self, driver: Driver, parts: Parts) -> None:
        self._driver, self._parts = driver, parts
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._slots: dict[int, bytes | None] = {}

    async def get(self, name: str, *, whole: bool = False) -> Entry | None:
        """The entry of a name, with its body where it is wanted; raises `Corrupt`."""
        key = entry_key(partition_of(name), name)
        [value] = await self._driver.get([key], head=not whole)
        return await self._read(key, value)

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[tuple[bytes, Entry | None]]:
        """The keys in this span with their entries, None for one that can't be read."""
        async with closing(self._driver.scan(start, stop, head=True)) as pages:
            async for page in pages:
                for key, value in page:
                    try:
                        entry = await self._read(key, value)
                    except Corrupt:
                        yield key, None
                    else:
                        if entry is not None:
                            yield key, entry

    async def change(
        self,
        name: str,
        decide: Decide[T],
        *,
        guess: bool = False,
        whole: bool = False,
        grows: bool = True,
        mark: bytes | None = None,
    ) -> T:
        """Replace the entry of a name by what `decide` makes of it; returns its answer.

        With `guess`, `decide` is first asked about a free name, and must not keep that; `whole`
        when it needs the body. `mark` is that of the upload the new entry refers to.
        """
        partition = partition_of(name)
        key, slot_key = entry_key(partition, name), partition_key(b"d", partition)
        counts = self._driver.capabilities.digests
        keys = [key, slot_key] if counts else [key]
        async with self._turns.setdefault(partition, asyncio.Lock()):
            if guess:
                found: Sequence[bytes | None] = [None, self._slots.get(partition)]
            else:
                found = await self._driver.get(keys, head=not whole)
            for _ in range(_ATTEMPTS):
                lost = False
                try:
                    current = await self._read(key, found[0])
                except Corrupt:  # nobody knows what it was, so anything may replace it
                    current, lost = None, True
                answer, new = await decide(current)
                if new is current:
                    return answer
                old = found[0] if lost else current.front if current else None
                changes = [Change(key, old, new.encode() if new else None)]
                if counts:
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
                found = await self._driver.get(keys) if whole else there
        raise Unavailable(f"{name} was changed by others {_ATTEMPTS} times meanwhile; try again")

    async def _read(self, key: bytes, value: bytes | None) -> Entry | None:
        """The entry whose value is this, or begins so; raises `Corrupt`."""
        if value is not None and front_size(value) > len(value):
            [value] = await self._driver.get([key])
        return decode(value) if value is not None else None

    async def _count(self, partition: int) -> Slot:
        """The digest of a partition, from its entries."""
        slot, start = Slot(), partition_key(b"e", partition)
        async with closing(self.scan(start, start + END)) as entries:
            async for _, entry in entries:
                if entry is not None:
                    entry.count(slot)
        return slot
