"""The parts of large blobs, above a driver: written before their entry, deleted after it.

Every part is either referred to by an entry or has a *mark*, whatever is broken off when. An
upload begins with a mark that is due in a day. The swap that makes an entry refer to the
parts takes the mark away; one that replaces a large blob leaves a mark for the old parts,
due an hour later for the sake of those who read them. What is due is deleted when the store
is opened and every ten minutes. The mark is claimed first, so an upload that took over a day
fails whole.

Read first: `dolmen.stores.driver`, `dolmen.stores.keyed_layout`, `dolmen.stores.parts`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from dolmen.closing import closing
from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Payload
from dolmen.repeating import Repeating
from dolmen.stores.driver import Change, Driver
from dolmen.stores.keyed_layout import END, MARK, Entry, mark_key, part_key, partition_in
from dolmen.stores.parts import Parts

UPLOAD_LIFE = 86_400
"""Seconds an upload may take."""
LINGER = 3_600
"""Seconds for which the parts of what was replaced stay for those who read them."""
_SWEEP_EVERY = 600.0
_log = logging.getLogger("dolmen.keyed")


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
