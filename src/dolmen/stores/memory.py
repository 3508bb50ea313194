"""`memory:` a store in a dictionary, for tests and as the model of the contract.

Not durable. The order of list is made by sorting the names of a partition.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable

from dolmen import metadata
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import BadContent, NotFound
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, read_whole
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, Capabilities, Condition, Put, Range
from dolmen.stores.bulk import OneByOne
from dolmen.stores.verdict import (
    NO_CHECKSUM,
    Action,
    Verdict,
    judge_delete,
    judge_put,
    judge_touch,
    may_remove,
)


class MemoryStore(OneByOne):
    """A blob store in memory. `now` returns seconds since 1970, `clock` gives stamps."""

    capabilities = Capabilities(
        durable=False, largest=1 << 31, digests=True, ordered=False, conflicts=True
    )

    def __init__(self, *, clock: Clock | None = None, now: Callable[[], float] = time.time) -> None:
        self._clock = clock or Clock()
        self._now = now
        self._partitions: dict[int, dict[str, tuple[BlobInfo, bytes]]] = {}
        self._notes: dict[str, bytes] = {}

    def _standing(self, name: str) -> BlobInfo | None:
        found = self._partitions.get(partition_of(check_name(name)), {}).get(name)
        return found[0] if found else None

    def _carry_out(self, verdict: Verdict, info: BlobInfo, data: bytes | None) -> Put:
        if verdict.action is not Action.KEEP:
            names = self._partitions.setdefault(partition_of(info.name), {})
            if data is None:  # a revision keeps the data
                data = names[info.name][1]
            info.arrived = int(self._now())
            names[info.name] = (info, data)
        return verdict.answer

    async def put(
        self,
        name: str,
        payload: Payload,
        *,
        meta: bytes = b"",
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
    ) -> Put:
        """See `BlobStore.put`."""
        check_name(name)
        metadata.check(meta)
        data = bytes(await read_whole(payload))
        found = checksum_of(data)
        if checksum is not None and checksum != found:
            raise BadContent(f"the data of {name} does not have the checksum announced")
        verdict = judge_put(
            name,
            self._standing(name),
            damaged=False,
            kind=kind,
            checksum=found,
            metadata=meta,
            stamp=stamp,
            clock=self._clock,
        )
        info = BlobInfo(name, len(data), kind, verdict.answer.stamp, found, meta)
        return self._carry_out(verdict, info, data)

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        info = await self.stat(name)
        data = self._partitions[partition_of(name)][name][1]
        start, stop = byte_range or (0, info.size)
        return Blob(info, Bytes(data[start:stop]))

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        info = self._standing(name)
        if info is None:
            raise NotFound(f"{name} is not here")
        if info.kind == Kind.TOMBSTONE and not tombstones:
            raise NotFound(f"{name} was deleted", stamp=info.stamp)
        return info

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        metadata.check(meta)
        standing = self._standing(name)
        verdict = judge_touch(
            name, standing, damaged=False, checksum=checksum, metadata=meta, stamp=stamp
        )
        assert standing is not None
        info = BlobInfo(name, standing.size, standing.kind, stamp, checksum, meta)
        return self._carry_out(verdict, info, None)

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        verdict = judge_delete(self._standing(name), stamp=stamp, clock=self._clock)
        info = BlobInfo(name, 0, Kind.TOMBSTONE, verdict.answer.stamp, NO_CHECKSUM)
        return self._carry_out(verdict, info, b"")

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        standing = self._standing(name)
        removed = may_remove(standing, if_stamp=if_stamp, min_age=min_age, now=self._now())
        if removed:
            del self._partitions[partition_of(name)][name]
        return removed

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        start = (partition_of(after), after) if after is not None else (-1, "")
        for partition in partitions:
            names = self._partitions.get(partition)
            if not names or partition < start[0]:
                continue
            for name in sorted(names):
                if (partition, name) <= start or not name.startswith(prefix) or name not in names:
                    continue
                info = names[name][0]
                if tombstones or info.kind != Kind.TOMBSTONE:
                    yield info

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        slots: dict[int, Slot] = {}
        for partition, names in self._partitions.items():
            slot = slots[partition] = Slot()
            for info, _ in names.values():
                entry = entry_hash(
                    info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata
                )
                slot.add(info.size, entry)
        return Digests(slots)

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        self._notes[key] = value

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        return dict(self._notes)

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        return Condition(remarks=["what is in memory is gone after a restart"])

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""


async def open_url(_url: str) -> MemoryStore:
    """A new, empty store for `memory:`."""
    return MemoryStore()
