"""`memory:` a store in a dictionary, for tests and as the model of the contract.

Not durable. Listings sort the names of one partition at a time. Data is checked before it
is handed out or built upon, as in every engine, so that a test can damage a copy and see
what becomes of it. Read first: `dolmen.store`, `dolmen.resolve`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable

from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import Corrupt, NotFound
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.resolve import (
    Action,
    check,
    check_content,
    check_key,
    may_remove,
    resolve,
)
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


class MemoryStore(OneByOne):
    """A blob store in memory. `now` returns seconds since 1970, `clock` gives stamps."""

    capabilities = Capabilities(
        durable=False, largest=1 << 31, digests=True, ordered=False, conflicts=True
    )

    def __init__(self, *, clock: Clock | None = None, now: Callable[[], float] = time.time) -> None:
        self._clock = clock or Clock()
        self._now = now
        self._partitions: dict[int, dict[str, tuple[BlobInfo, bytes]]] = {}
        self._quarantine: set[str] = set()
        self._notes: dict[str, bytes] = {IDENTITY: secrets.token_hex(16).encode()}

    def _current(self, name: str) -> tuple[BlobInfo, bytes] | tuple[None, bytes]:
        return self._partitions.get(partition_of(name), {}).get(name, (None, b""))

    async def write(self, write: Write) -> Put:
        check(write)
        data = bytes(await read_whole(write.payload))
        if write.kind == Kind.TOUCH:
            checksum = write.checksum or NO_CHECKSUM
        elif write.kind == Kind.TOMBSTONE:
            checksum = NO_CHECKSUM
        else:
            checksum = checksum_of(data)
            check_content(write, checksum)
        current, held = self._current(write.name)
        damaged = not self._is_sound(write.name)
        action, put = resolve(write, current, checksum=checksum, damaged=damaged, clock=self._clock)
        if action is Action.KEEP:
            return put
        kind = write.kind
        if action is Action.TOUCH:
            assert current is not None
            kind, data = current.kind, held
        now = int(self._now())
        info = BlobInfo(write.name, len(data), kind, put.stamp, checksum, write.metadata, now)
        self._partitions.setdefault(partition_of(write.name), {})[write.name] = info, data
        self._quarantine.discard(write.name)
        return put

    def _is_sound(self, name: str) -> bool:
        info, data = self._current(name)
        if info is not None and info.kind != Kind.TOMBSTONE and checksum_of(data) != info.checksum:
            self._quarantine.add(name)
        return name not in self._quarantine

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        self._is_sound(check_name(name))
        info = await self.stat(name)
        data = self._current(name)[1]
        start, stop = byte_range or (0, info.size)
        return Blob(info, Bytes(data[start:stop]))

    async def stat(self, name: str) -> BlobInfo:
        info, _ = self._current(check_name(name))
        if info is None:
            raise NotFound(f"{name} is not here")
        if info.kind == Kind.TOMBSTONE:
            raise NotFound(f"{name} was deleted", stamp=info.stamp)
        if name in self._quarantine:
            raise Corrupt(f"this copy of {name} is damaged: its data has another checksum")
        return info

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        name, if_stamp = remove
        current, _ = self._current(check_name(name))
        removed = may_remove(current, if_stamp=if_stamp, min_age=min_age, now=self._now())
        if removed:
            del self._partitions[partition_of(name)][name]
            self._quarantine.discard(name)
        return removed

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        after = listing.after
        start = (partition_of(after), after) if after is not None else (-1, "")
        for partition in filter(self._partitions.__contains__, listing.partitions):
            names = self._partitions[partition]
            if partition < start[0]:
                continue
            for name in sorted(names):
                if (partition, name) <= start or not name.startswith(listing.prefix):
                    continue
                if (name in self._quarantine) is listing.quarantined and name in names:
                    info = names[name][0]
                    if listing.tombstones or info.kind != Kind.TOMBSTONE:
                        yield info

    async def digests(self) -> Digests:
        slots: dict[int, Slot] = {}
        for partition, names in self._partitions.items():
            slot = slots[partition] = Slot()
            for name, (info, _) in names.items():
                if name in self._quarantine:
                    continue
                entry = entry_hash(
                    name.encode(), info.stamp, info.kind, info.checksum, info.metadata
                )
                slot.add(info.size, entry)
        return Digests(slots)

    async def note(self, key: str, value: bytes) -> None:
        self._notes[check_key(key)] = value

    async def notes(self) -> dict[str, bytes]:
        return dict(self._notes)

    async def condition(self) -> Condition:
        return Condition(remarks=["what is in memory is gone after a restart"])

    async def aclose(self) -> None:
        """Nothing is to be let go of."""


async def open_url(_url: str) -> MemoryStore:
    """A new, empty store for `memory:`."""
    return MemoryStore()
