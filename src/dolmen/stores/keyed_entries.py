"""Entries above a driver: reading them, and replacing one together with all that hangs on it.

A change reads the entry of a name and the digest of its partition, lets the caller
decide, and swaps both in one step if they still are what was read; else the caller decides
again on what is there now. Changes of one partition in one process take turns, so only other
processes ever interfere.

Read first: `dolmen.stores.driver`, `dolmen.stores.keyed_layout`, `dolmen.stores.keyed_parts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from dolmen.closing import closing
from dolmen.digests import Slot
from dolmen.errors import Unavailable
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
from dolmen.stores.keyed_parts import KeyedParts

_ATTEMPTS = 100
"""How often a change is decided again because another process was faster, each time."""
T = TypeVar("T")
Decide = Callable[[Entry | None], Awaitable[tuple[T, Entry | None]]]
"""Gets what is kept under a name; returns an answer and what is to be kept, the same for no change.
"""


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
        async with closing(self._driver.scan(start, stop, head=True)) as pages:
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
