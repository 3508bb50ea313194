"""Read repair: copies that a read missed are made behind its answer.

A read that found a blob on a later server, because one that should have it said no, knew only
an older delete, or had a copy that is damaged, offers it here. A few are mended at once,
others wait in a bounded queue; when that is full an offer is dropped, and repair proper makes
the copy later. Only names wait: the blob is read again, and checked again, when its turn comes.

What is made is the blob as it is: kind, stamp and metadata. So it loses to whatever newer is
written meanwhile, deletes included. Nothing is made where one of the two servers may have
forgotten that it was deleted (`dolmen.stores.watermark`): that is for repair to settle.

A copy that is wrong though its server never said so is first verified by that server, where it
lies. If it is wrong there, it is removed and made anew under the higher of the two stamps:
a put alone could lose to it. If it is sound there it was spoiled on its way, and left alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dolmen.cluster.breaker import Breaker
from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Place
from dolmen.cluster.verify import verified
from dolmen.errors import Corrupt, DolmenError, NotFound
from dolmen.store import Blob, BlobInfo, Failed, Outcome, Remove, Write
from dolmen.stores.base import write_any
from dolmen.stores.watermark import watermark_in

WAITING = 1_000
AT_ONCE = 2
AGAIN = 60.0
"""Seconds for which a name is left alone whose copies could not be made."""


class Lack(NamedTuple):
    """A member without a good copy of a blob, and what it had: a "no", damage, or a wrong copy."""

    member: Member
    had: NotFound | Corrupt | BlobInfo


class _Wanted(NamedTuple):
    name: str
    source: Member
    lacks: Sequence[Lack]


class Mending:
    """The copies to be made. `now` is in seconds, from any start."""

    def __init__(self, breaker: Breaker, now: Callable[[], float]) -> None:
        self._breaker, self._now = breaker, now
        self._queue: deque[_Wanted] = deque()
        self._names: set[str] = set()
        self._left_alone: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.repaired = 0
        """Copies made."""
        self.failed = 0
        """Copies that could not be made, or should not."""
        self.dropped = 0
        """Blobs for which there was no room in the queue."""

    @property
    def under_way(self) -> int:
        """Blobs that are being mended, or wait for it."""
        return len(self._names)

    def offer(self, name: str, source: Member, lacks: Sequence[Lack], place: Place) -> None:
        """Have a blob that `source` has copied to those who lack it and should hold it."""
        troubles = self._breaker.troubles
        lacks = [
            lack
            for lack in lacks
            if lack.member in place.rightful and lack.member.name not in troubles
        ]
        if not lacks or name in self._names or self._left_alone.get(name, 0) > self._now():
            return
        if len(self._names) >= WAITING:
            self.dropped += 1
            return
        self._names.add(name)
        self._queue.append(_Wanted(name, source, lacks))
        if len(self._tasks) < AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stop; what was not made is left to repair."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while self._queue:
            name, source, lacks = self._queue.popleft()
            try:
                for lack in lacks:
                    await self._mend(name, source, lack)
            finally:
                self._names.discard(name)

    async def _mend(self, name: str, source: Member, lack: Lack) -> None:
        try:
            made = await _made(name, source, lack)
            self.repaired += made
        except DolmenError as error:
            self.failed += 1
            self._breaker.failed(lack.member, error)
            if len(self._left_alone) >= WAITING:
                self._left_alone.clear()
            self._left_alone[name] = self._now() + AGAIN


async def _made(name: str, source: Member, lack: Lack) -> bool:
    """Make one copy; whether it was still lacking. Raises what reading and writing raise."""
    store, had = lack.member.store, lack.had
    blob = await verified(await source.store.get(name), None)
    if blob is None:
        raise Corrupt(f"the copy of {name} to mend others from has gone wrong")
    unknown = isinstance(had, NotFound) and not had.stamp and store.capabilities.stamps
    if unknown and await _watermark(source) != await _watermark(lack.member):
        raise NotFound(f"{name} may have been deleted before one of the two forgot of it")
    if isinstance(had, BlobInfo):
        async for answer in store.verify_many([name]):
            if not isinstance(answer, Failed):
                return False
            if not isinstance(answer.error, Corrupt):
                raise answer.error
        await store.remove_many([Remove(name, had.stamp)])
        if had.rank > blob.info.rank:  # the name says what the content is, under either stamp
            info = replace(blob.info, stamp=had.stamp, metadata=had.metadata)
            blob = Blob(info, blob.payload)
    put = await write_any(store, Write.copy(blob))
    if isinstance(put, Failed):
        raise put.error
    return put.outcome is Outcome.CREATED


async def _watermark(member: Member) -> int:
    return watermark_in(await member.store.notes()) if member.store.capabilities.stamps else 0
