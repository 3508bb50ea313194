"""The parts of large blobs, above a driver: written before their entry, deleted after it.

Every part is either referred to by an entry or has a *mark*, whatever is broken off when. An
upload begins with a mark that is due in a day. The swap that makes an entry refer to the
parts takes the mark away; one that replaces a large blob leaves a mark for the old parts,
due an hour later for the sake of those who read them. What is due is deleted when the store
is opened and every ten minutes. The mark is claimed first, so an upload that took over a day
fails whole.

Read first: `dolmen.stores.driver`, `dolmen.stores.keyed_layout`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice

from blake3 import blake3

from dolmen.buffers import Buffers
from dolmen.closing import closing
from dolmen.errors import Corrupt, DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import CHECKSUM_SIZE, partition_of
from dolmen.payload import Payload, Piece
from dolmen.record import NOBODY
from dolmen.repeating import Repeating
from dolmen.stores.base import UnderWay
from dolmen.stores.driver import Change, Driver
from dolmen.stores.keyed_layout import (
    END,
    SUM_SIZE,
    Entry,
    decode_mark,
    encode_mark,
    mark_key,
    part_key,
    partition_in,
    sum_of,
)

UPLOAD_LIFE = 86_400
"""Seconds an upload may take."""
LINGER = 3_600
"""Seconds for which the parts of what was replaced stay for those who read them."""
_SWEEP_EVERY = 600.0
_AT_ONCE = 4
"""Parts of one blob on their way."""
_log = logging.getLogger("dolmen.keyed")


class Upload:
    """The parts of one blob that is being written.

    `sums` are the checksums of the parts, `checksum` that of the data, `mark` what its mark
    says.
    """

    def __init__(self, partition: int, mark: bytes) -> None:
        self.id = secrets.token_bytes(16)
        self.partition, self.mark = partition, mark
        self.key = mark_key(partition, self.id)
        self.sums, self.checksum = bytearray(), b""
        self.sent: deque[asyncio.Future[None]] = deque()

    async def arrived(self) -> None:
        """Wait for the first of the parts on their way."""
        try:
            await asyncio.shield(self.sent[0])
        except OutcomeUnknown as error:  # nobody sees a part
            raise Unavailable(str(error)) from error
        self.sent.popleft()


class Parts:
    """All parts of a store. `now` returns seconds since 1970."""

    def __init__(self, driver: Driver, now: Callable[[], float]) -> None:
        self._driver, self._now = driver, now
        self._buffers = Buffers(driver.part_size, spare=8)
        self._tidying: set[asyncio.Task[None]] = set()
        self._sweeping = Repeating(self._sweep)

    def begin(self, name: str, size: int) -> Upload:
        """An upload of so many bytes, of which nothing is kept yet."""
        mark = encode_mark(self._now() + UPLOAD_LIFE, self._count(size))
        return Upload(partition_of(name), mark)

    async def send(self, upload: Upload, payload: Payload) -> None:
        """Keep the parts of a payload; raises what reading and keeping it raise."""
        hasher = blake3()
        try:
            await self._driver.swap([Change(upload.key, None, upload.mark)])
        except OutcomeUnknown as error:  # nobody sees a mark either
            raise Unavailable(str(error)) from error
        async with closing(self._cut(payload)) as parts:
            async for part in parts:
                hasher.update(part)
                while len(upload.sent) >= _AT_ONCE:
                    await upload.arrived()
                key = part_key(upload.partition, upload.id, len(upload.sums) // SUM_SIZE)
                upload.sums += sum_of(part)
                upload.sent.append(asyncio.ensure_future(self._driver.set(key, part)))
        while upload.sent:
            await upload.arrived()
        upload.checksum = hasher.digest(CHECKSUM_SIZE)

    def give_up(self, upload: Upload) -> None:
        """Delete the parts in the background, unless an entry refers to them after all."""
        task = asyncio.get_running_loop().create_task(self._tidy(upload))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    def replaced(self, entry: Entry) -> Change:
        """The change that marks the parts of an entry that goes."""
        mark = encode_mark(self._now() + LINGER, self._count(entry.info.size))
        return Change(mark_key(partition_of(entry.info.name), entry.upload), None, mark)

    async def read(self, entry: Entry, start: int, stop: int) -> AsyncIterator[Piece]:
        """The checked bytes of a range of an entry with or without parts; raises `Corrupt`."""
        if entry.upload == NOBODY:
            entry.check_data()
            yield entry.body[start:stop]
            return
        size, partition = self._driver.part_size, partition_of(entry.info.name)
        numbers = range(start // size, -(-stop // size)) if start < stop else range(0)
        following = iter(numbers)
        async with UnderWay[list[bytes | None]]() as ahead:
            for number in numbers:
                for later in islice(following, _AT_ONCE - len(ahead)):
                    ahead.add(self._driver.get([part_key(partition, entry.upload, later)]))
                [part] = await ahead.next()
                wanted = entry.body[number * SUM_SIZE : (number + 1) * SUM_SIZE]
                if part is None or sum_of(part) != wanted:
                    raise Corrupt(f"part {number} of {entry.info.name} is missing or damaged")
                at = number * size
                yield memoryview(part)[max(start - at, 0) : stop - at]

    async def sweep(self) -> None:
        """Delete what is due."""
        async with closing(self._driver.scan(b"u0000", b"uffff" + END)) as pages:
            async for page in pages:
                for key, mark in page:
                    if decode_mark(mark)[0] <= self._now():
                        await self._drop(key, mark)

    async def aclose(self) -> None:
        """Wait for what tidies up."""
        await self._sweeping.aclose()
        await asyncio.gather(*self._tidying)

    def _count(self, size: int) -> int:
        return -(-size // self._driver.part_size)

    async def _cut(self, payload: Payload) -> AsyncIterator[memoryview]:
        """The data of a payload in parts, the last one shorter."""
        size = self._driver.part_size
        held, filled = self._buffers.take(), 0
        async for piece in payload:
            view = memoryview(piece)
            while len(view) >= size - filled:
                taken, view = view[: size - filled], view[size - filled :]
                if filled:
                    held[filled:] = taken
                    taken, held, filled = held, self._buffers.take(), 0
                yield taken
            held[filled : filled + len(view)] = view
            filled += len(view)
        if filled:
            yield held[:filled]

    async def _tidy(self, upload: Upload) -> None:
        answers: Iterable[object] = await asyncio.gather(*upload.sent, return_exceptions=True)
        if any(isinstance(answer, OutcomeUnknown) for answer in answers):
            return  # one may still arrive: the sweep deletes them when they are due
        try:
            await self._drop(upload.key, upload.mark)
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
        _, count = decode_mark(mark)
        claimed = encode_mark(0, count)
        if await self._driver.swap([Change(key, mark, claimed)], grows=False) is not None:
            return
        await self._driver.delete([part_key(partition, upload, at) for at in range(count)])
        await self._driver.swap([Change(key, claimed, None)], grows=False)
