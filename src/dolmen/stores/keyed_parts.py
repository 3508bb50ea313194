"""Large blobs of a `KeyedStore`: parts written before their entry, deleted after it.

    p PARTITION UPLOAD NUMBER   a part (`dolmen.stores.parts`): UPLOAD 32 hex digits, NUMBER 8
    u PARTITION UPLOAD          a mark: no entry refers to these parts; when they are due, how many

Every part is either referred to by an entry or has a mark, whatever is broken off when. An
upload begins with a mark that is due in a day. The swap that makes an entry refer to the parts
takes the mark away; one that replaces a large blob leaves a mark for the old parts, due an hour
later for the sake of those who read them. Those of an upload that failed are deleted at once, and
once more when none can still be on its way. What is due is deleted when the store is opened and
every ten minutes. The mark is claimed first, so an upload that took over a day fails whole.

Read first: `dolmen.stores.driver`, `dolmen.stores.parts`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Payload
from dolmen.repeating import Repeating
from dolmen.stores.driver import Change, Driver
from dolmen.stores.parts import Parts

UPLOAD_LIFE = 86_400
"""Seconds an upload may take."""
LINGER = 3_600
"""Seconds for which the parts of what was replaced stay for those who read them."""
_STRAGGLERS = 60
"""Seconds after which no part of an upload that failed is still on its way."""
_SWEEP_EVERY = 600.0
_MARK = struct.Struct(">QI")
"""When the parts may go, in seconds since 1970, and how many there are."""
_log = logging.getLogger("dolmen.keyed")


class Upload(NamedTuple):
    """The parts of one blob that is being written, and what its mark says."""

    partition: int
    id: bytes
    mark: bytes

    @property
    def key(self) -> bytes:
        """The key of the mark."""
        return _mark_key(self.partition, self.id)


class KeyedParts:
    """All parts of a store. `now` returns seconds since 1970."""

    def __init__(self, driver: Driver, now: Callable[[], float]) -> None:
        self._driver, self._now = driver, now
        self._parts = Parts(driver.part_size, at_once=4)
        self._giving_up: set[asyncio.Task[None]] = set()
        self._sweeping = Repeating(self._sweep)

    def begin(self, name: str, size: int) -> Upload:
        """An upload of so many bytes, of which nothing is kept yet."""
        return Upload(partition_of(name), secrets.token_bytes(16), self._mark(size, UPLOAD_LIFE))

    async def send(self, upload: Upload, payload: Payload) -> bytes:
        """Keep the parts of a payload; returns its checksum."""
        try:
            await self._driver.swap([Change(upload.key, None, upload.mark)])
        except OutcomeUnknown as error:  # nobody sees a mark
            raise Unavailable(str(error)) from error
        return await self._parts.send(
            payload,
            lambda number, part: self._driver.set(part_key(*upload[:2], number), part),
        )

    def give_up(self, upload: Upload) -> None:
        """Delete the parts in the background, unless an entry refers to them after all."""
        count = _MARK.unpack(upload.mark)[1]
        soon = _MARK.pack(int(self._now()) + _STRAGGLERS, count)

        async def delete() -> None:
            with suppress(DolmenError):  # the sweep does it later
                change = Change(upload.key, upload.mark, soon)
                if await self._driver.swap([change], grows=False):
                    await self._driver.delete(_keys(upload.partition, upload.id, count))

        task = asyncio.get_running_loop().create_task(delete())
        self._giving_up.add(task)
        task.add_done_callback(self._giving_up.discard)

    def replaced(self, name: str, upload: bytes, size: int) -> Change:
        """The change that marks the parts of an entry that goes."""
        return Change(_mark_key(partition_of(name), upload), None, self._mark(size, LINGER))

    def read(
        self, name: str, upload: bytes, size: int, start: int, stop: int
    ) -> AsyncIterator[memoryview]:
        """The checked bytes of a range of a blob of this size; raises `Corrupt`."""

        async def fetch(number: int) -> bytes | None:
            return (await self._driver.get([part_key(partition_of(name), upload, number)]))[0]

        return self._parts.read(fetch, name, size, start, stop)

    async def sweep(self) -> None:
        """Delete what is due."""
        async with closing(self._driver.scan(b"u0000", b"uffff\xff")) as pages:
            async for page in pages:
                for key, mark in page:
                    due, count = _MARK.unpack(mark)
                    if due <= self._now():
                        await self._drop(key, mark, count)

    async def _drop(self, key: bytes, mark: bytes, count: int) -> None:
        """Delete the parts of this mark, unless an entry refers to them by now."""
        partition, upload = int(key[1:5], 16), bytes.fromhex(key[5:].decode())
        claimed = _MARK.pack(0, count)
        if await self._driver.swap([Change(key, mark, claimed)], grows=False):
            await self._driver.delete(_keys(partition, upload, count))
            await self._driver.swap([Change(key, claimed, None)], grows=False)

    async def _sweep(self) -> float:
        try:
            await self.sweep()
        except DolmenError as error:
            _log.info("parts that are due stay for now: %s", error)
        return _SWEEP_EVERY

    def _mark(self, size: int, life: int) -> bytes:
        return _MARK.pack(int(self._now()) + life, self._parts.count(size))

    async def aclose(self) -> None:
        """Wait for what is under way."""
        await self._sweeping.aclose()
        await asyncio.gather(*self._giving_up)


def part_key(partition: int, upload: bytes, number: int) -> bytes:
    """The key of a part."""
    return b"p%04x%b%08x" % (partition, upload.hex().encode(), number)


def _keys(partition: int, upload: bytes, count: int) -> list[bytes]:
    return [part_key(partition, upload, number) for number in range(count)]


def _mark_key(partition: int, upload: bytes) -> bytes:
    return b"u%04x%b" % (partition, upload.hex().encode())
