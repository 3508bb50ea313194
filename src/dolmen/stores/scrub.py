"""Scrub: everything a store holds is read to its end, so that damage is found in time.

Disks lose bytes silently. A copy found damaged is quarantined by its store, which is how
replication comes to replace it while there are others. The place a scrub has reached is
noted in the store, with what it found so far, so one that was broken off goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from dolmen.closing import closing
from dolmen.errors import Corrupt, NotFound, ReadOnly
from dolmen.names import PARTITIONS, partition_of
from dolmen.pace import Pace
from dolmen.store import BlobInfo, BlobStore, Failed, Listing

KEY = "scrub"
_BATCH, _BATCH_BYTES = 256, 16 << 20
_NOTE_EVERY = 10.0
"""Seconds after which the place is noted again."""


@dataclass(slots=True)
class Scrub:
    """How far a scrub is. Times in seconds since 1970, sizes in bytes."""

    begun: float = 0.0
    place: str | None = None
    """The last name that was read."""
    checked: int = 0
    bytes: int = 0
    failed: int = 0
    ended: float | None = None
    """When it was through; None while it is not."""
    last: float | None = None
    """When the last one that came to its end did."""

    @property
    def done(self) -> float:
        """The share of the names that were read, 0 to 1."""
        if self.ended is not None:
            return 1.0
        return partition_of(self.place) / PARTITIONS if self.place else 0.0


def scrub_in(notes: Mapping[str, bytes]) -> Scrub | None:
    """The scrub that a store's notes tell of; None where there never was one."""
    try:
        return Scrub(**json.loads(notes[KEY]))
    except (KeyError, TypeError, ValueError):
        return None


async def scrub(
    store: BlobStore,
    *,
    again: bool = False,
    pace: Pace | None = None,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[tuple[Scrub, Sequence[Failed]]]:
    """Read everything, from where the last scrub broke off unless it is to begin `again`.

    Gives after every batch how far it is, and the copies in it that are damaged. Raises
    `Unavailable` when the store can't be asked.
    """
    known = scrub_in(await store.notes())
    if known is None or known.ended is not None or again:
        known = Scrub(begun=now(), last=known.last if known else None)
    pace = pace or Pace()
    noted = now()
    async with closing(_batches(store, known.place)) as batches:
        async for batch in batches:
            damaged = await _verify(store, batch)
            known.place = batch[-1].name
            known.checked += len(batch)
            known.bytes += sum(info.size for info in batch)
            known.failed += len(damaged)
            if now() - noted >= _NOTE_EVERY:
                await _note(store, known)
                noted = now()
            yield known, damaged
            if wait := pace.delay(sum(info.size for info in batch)):
                await pause(wait)
    known.ended = known.last = now()
    await _note(store, known)
    yield known, ()


async def _batches(store: BlobStore, after: str | None) -> AsyncIterator[Sequence[BlobInfo]]:
    batch: list[BlobInfo] = []
    size = 0
    async with closing(store.list(Listing(after=after))) as infos:
        async for info in infos:
            batch.append(info)
            size += max(info.size, 0)
            if len(batch) >= _BATCH or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


async def _verify(store: BlobStore, batch: Sequence[BlobInfo]) -> Sequence[Failed]:
    """Those of a batch that are damaged; what went meanwhile is none of them."""
    damaged = []
    async with closing(store.verify_many([info.name for info in batch])) as answers:
        async for answer in answers:
            if not isinstance(answer, Failed) or isinstance(answer.error, NotFound):
                continue
            if not isinstance(answer.error, Corrupt):
                raise answer.error
            damaged.append(answer)
    return damaged


async def _note(store: BlobStore, known: Scrub) -> None:
    with suppress(ReadOnly):  # then the next one begins anew
        await store.note(KEY, json.dumps(asdict(known)).encode())
