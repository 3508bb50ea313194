"""`volume:/path` a blob store in a folder: segments of records with an index beside them.

Durable: a write is answered when its record has been flushed to disk, and is then visible.
Blobs up to 4 MiB are received whole in memory, within a budget, and appended to the log;
larger ones, and what the budget has no room for, go to files of their own. One process has a
volume open; it holds the folder's lock. Opened read-only, nothing at all is written.

`docs/disk-format.md` describes the folder, `docs/durability.md` why no order of crash, refusal,
restart and reindex loses or invents anything. Read first: `dolmen.store`, `folder`, `commit`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from dolmen.digests import Digests
from dolmen.errors import Corrupt, DolmenError, Full, NotFound, ReadOnly, TooLarge, Unavailable
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.ready import Ready
from dolmen.record import Kind, block_sums
from dolmen.resolve import check, check_content, check_key
from dolmen.stamps import Clock
from dolmen.store import (
    EVERYTHING,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Failed,
    Listing,
    Outcome,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne, UnderWay, answer_of, get_any, write_any, write_in_batches
from dolmen.stores.volume.catalog import digests_of, runs
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, key_of, unpack
from dolmen.stores.volume.large import LargeFile
from dolmen.stores.volume.pending import ALONE, SMALL, Bulk, Pending, Removal, size_of, small
from dolmen.stores.volume.reader import WHOLE, Reader
from dolmen.stores.volume.recovery import Opened, open_folder

T = TypeVar("T")
CHUNK = 4 << 20
"""Blobs up to this size are appended to the log, larger ones have files of their own."""
BUDGET = 128 << 20
"""What payloads received whole take in memory together."""
LARGEST = 1 << 44
_READ_AT_ONCE, _VERIFIED_AT_ONCE = 32, 4
_log = logging.getLogger("dolmen.volume")


class Volume(OneByOne):
    """A volume that this process has open. Made by `open_volume`, on a running event loop."""

    capabilities = Capabilities(
        durable=True, largest=LARGEST, digests=True, ordered=True, conflicts=True
    )

    def __init__(
        self, opened: Opened, threads: Executor | None, make_log: Callable[..., Log]
    ) -> None:
        """`make_log` is given all but clocks and sizes; tests give the `threads`."""
        self._opened, self._closed = opened, False
        self.folder, self.catalog = opened.folder, opened.catalog
        self._disk, self.path = opened.folder.disk, opened.folder.path
        self._index, self._budget = opened.catalog.index, BUDGET
        self._loop = asyncio.get_running_loop()
        self._threads = threads or ThreadPoolExecutor(4, thread_name_prefix="dolmen-volume")
        self._writer = threads or ThreadPoolExecutor(1, thread_name_prefix="dolmen-log")
        self.reader = Reader(self.folder, self._threads, self._quarantine)
        self.log: Log | None = None
        if opened.active is not None:
            owned = self.catalog, opened.active, self.reader
            self.log = make_log(*owned, thread=self._writer, threads=self._threads)
        self._noting = asyncio.Lock()
        self._digests: tuple[bytes, Digests] | None = None
        self._closing: asyncio.Task[None] | None = None

    def name_owner(self, owner: str) -> None:
        """Say in the folder who has the volume open, such as the address of a server."""
        if self._opened.lock is not None and self.log is not None:
            self.folder.name_owner(self._opened.lock, f"process {os.getpid()}, {owner}")

    # Writing

    def write(self, write: Write) -> Awaitable[Put]:
        """See `BlobStore.write`."""
        if size_of(write) != ALONE:
            return self.submit(small(write))
        check(write)
        payload = write.payload
        if payload.size > CHUNK or (payload.whole is None and SMALL < payload.size > self._budget):
            return self._write_alone(write)
        return self._write_whole(write)

    def submit(self, pending: Pending) -> Awaitable[Put]:
        """Have a write decided and carried out; raises `ReadOnly`, `Unavailable`."""
        return self._writable().submit(pending)

    def _writable(self) -> Log:
        if self._closing is not None:
            raise self._is_closed()
        if self.log is None:
            raise ReadOnly(f"the volume {self.path} was opened read-only")
        return self.log

    async def _write_whole(self, write: Write) -> Put:
        payload = write.payload
        taken = payload.size if payload.whole is None else 0
        self._budget -= taken
        try:
            data = await read_whole(payload)
            if payload.size > SMALL:
                hashes = self.in_thread(checksum_of, data), self.in_thread(block_sums, data)
                checksum, sums = await asyncio.gather(*hashes)
            else:
                checksum, sums = checksum_of(data), block_sums(data)
            check_content(write, checksum)
            return await self.submit(Pending(write, checksum, data, sums))
        finally:
            self._budget += taken

    async def _write_alone(self, write: Write) -> Put:
        if (size := write.payload.size) > LARGEST:
            raise TooLarge(f"{write.name} is {size} bytes; a volume keeps up to {LARGEST}")
        self._writable().check_room(size)
        number = self.catalog.take_number()
        file = LargeFile(self.folder, number, write, self._threads)
        pending: Pending | None = None
        try:
            checksum = await file.receive()
            check_content(write, checksum)
            pending = Pending(write, checksum, alone=number)
            return await self.submit(pending)
        except OSError as error:
            raise self._refused(error) from error
        except RuntimeError as error:  # its threads have gone
            raise (self._is_closed() if self._closed else error) from error
        finally:
            if pending is None or pending.put is None:
                with suppress(RuntimeError):  # closed: the next opening removes it
                    self._threads.submit(file.remove)

    def _refused(self, error: OSError) -> DolmenError:
        """What an error says of an upload that nothing refers to yet."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return Full(f"{self.path} has no room for it ({error}): nothing was stored")
        return Unavailable(f"{self.path} can't be written ({error}): nothing was stored")

    def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.write_many`. Small writes are submitted together, four times 128."""
        return write_in_batches(writes, self._write_batch, size_of, most=128, room=ALONE, at_once=4)

    async def _write_batch(self, batch: Sequence[Write]) -> Sequence[Put | Failed]:
        if size_of(batch[0]) == ALONE:
            return [await write_any(self, batch[0])]
        bulk = Bulk(self._loop, batch)
        for part in bulk.parts:
            try:
                self._writable().submit_part(small(part.write), part)
            except DolmenError as error:
                part.fail(error)
        await bulk
        return bulk.answers()

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`."""
        write = Write(check_name(remove.name), kind=Kind.REMOVAL)
        put = await self.submit(Removal(write, if_stamp=remove.if_stamp, min_age=min_age))
        return put.outcome is Outcome.CREATED

    # Reading

    def get(self, name: str, *, byte_range: Range | None = None) -> Awaitable[Blob]:
        """See `BlobStore.get`. The answer is `Ready` where the disk need not be waited for."""
        entry = self.catalog.found.get(name)
        if entry is None:
            entry = self._live(name)
            self.catalog.keep(name, entry)
        if byte_range is None and entry.length <= WHOLE:
            data = self.reader.cached(name.encode(), entry)
            if data is not None:
                return Ready(Blob(entry.info(name), Bytes(data)))
        return self._get(name, entry, byte_range)

    async def _get(self, name: str, entry: Entry, byte_range: Range | None) -> Blob:
        return Blob(entry.info(name), await self.reader.read(name, entry, byte_range))

    def stat(self, name: str) -> Awaitable[BlobInfo]:
        """See `BlobStore.stat`."""
        return Ready(self._live(name).info(name))

    def _live(self, name: str) -> Entry:
        if self._closed:
            raise self._is_closed()
        try:
            value = self._index.get(key_of(name))
        except (OSError, UnicodeEncodeError) as error:
            check_name(name)
            raise Unavailable(f"the index of {self.path} can't be read: {error}") from error
        if value is None or name < "\3":  # such a key may be that of a packed name
            check_name(name)  # here, as whatever else has an entry has a good name
            raise NotFound(f"{name} is not here")
        entry = unpack(value)
        if entry.kind == Kind.TOMBSTONE:
            raise NotFound(f"{name} was deleted", stamp=entry.stamp)
        if entry.damaged:
            raise Corrupt(
                f"this copy of {name} is quarantined, because it failed its check; replication "
                "replaces it from another copy"
            )
        return entry

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`. What the page cache lacks is fetched for many at once."""
        for first in range(0, len(names), _READ_AT_ONCE):
            cold: list[tuple[str, Entry]] = []
            answers = []
            for name in names[first : first + _READ_AT_ONCE]:
                answer: Blob | Failed | None = None
                try:
                    entry = self.catalog.found.get(name) or self._live(name)
                    if entry.length <= WHOLE:
                        data = self.reader.cached(name.encode(), entry)
                        if data is None:
                            cold.append((name, entry))
                        else:
                            answer = Blob(entry.info(name), Bytes(data))
                except DolmenError as error:
                    answer = answer_of(name, error)
                answers.append((name, answer))
            if cold:
                await self.reader.fetch(cold)
            for name, answer in answers:
                yield answer or await get_any(self, name)

    async def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """See `BlobStore.verify_many`: also the heads of records, which a reindex needs."""
        async with UnderWay[BlobInfo | Failed]() as under_way:
            for name in names:
                if len(under_way) == _VERIFIED_AT_ONCE:
                    yield await under_way.next()
                under_way.add(self._verify(name))
            while under_way:
                yield await under_way.next()

    async def _verify(self, name: str) -> BlobInfo | Failed:
        try:
            entry = self._live(name)
            wrong = await self.reader.verify(name, entry, named=True)
        except DolmenError as error:
            answer = answer_of(name, error)
            return answer if isinstance(answer, Failed) else answer.info
        return Failed(name, Corrupt(wrong)) if wrong else entry.info(name)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        name = listing.after
        after = (-1, "") if name is None else (partition_of(name), name)
        left = runs(listing.partitions, after[0])
        while left:
            for info in await self.in_thread(self.catalog.page, left, listing, after):
                yield info

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        slots = bytes(self.catalog.slots)
        if self._digests is None or self._digests[0] != slots:
            self._digests = slots, await self.in_thread(digests_of, slots)
        return self._digests[1]

    def _quarantine(self, name: str, entry: Entry) -> None:
        """Mark a copy that failed its check, unless another is current by now."""
        key = key_of(name)
        if self._closed or (self.log is not None and self.log.writes_under_way(key)):
            return
        _log.error(
            "quarantined: the copy of %s (file %08x, byte %d); check the disk", name, *entry.data
        )
        try:
            self.catalog.quarantine(key, name.encode(), entry.data)
        except OSError as error:
            _log.error("the copy of %s could not be quarantined: %s", name, error)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        check_key(key)
        self._writable()
        async with self._noting:
            notes = self._opened.notes | {key: value}
            try:
                await self.in_thread(self.folder.write_notes, notes)
            except OSError as error:
                raise self._refused(error) from error
            self._opened.notes = notes

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        return dict(self._opened.notes)

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        try:
            async with self._noting:  # small files are written by one at a time
                return await self.in_thread(self._condition)
        except OSError as error:
            return Condition(writable=False, reasons=[f"{self.path} can't be looked at: {error}"])

    def _condition(self) -> Condition:
        free, total, read_only = self._disk.space(self.path)
        reasons, remarks, log = [], [*self._opened.recovered.damaged], self.log
        if read_only:
            reasons.append("the file system is read-only: check the disk and the system's log")
        if log is None:  # as it was asked for
            remarks.append("the volume was opened read-only")
            return Condition(free, total, writable=False, reasons=reasons, remarks=remarks)
        if log.broken is not None:
            reasons.append(f"takes no writes because {log.broken}")
        else:
            if free < log.reserve:
                reasons.append("the disk is full: puts are refused")
            elif not read_only:
                self.folder.keep_reserve()
            try:
                log.active.check_linked()
            except OSError as error:
                reasons.append(str(error))
        return Condition(free, total, writable=not reasons, reasons=reasons, remarks=remarks)

    def in_thread(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Run a call in a thread; raises `Unavailable` when the volume is closed."""
        if self._closed:
            raise self._is_closed()
        return self._loop.run_in_executor(self._threads, partial(call, *arguments))

    def _is_closed(self) -> Unavailable:
        return Unavailable(f"the volume {self.path} is closed")

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self.log is not None:
            await self.log.close()
        self._closed = True
        self.catalog.found.clear()
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        self._writer.shutdown()
        self._threads.shutdown()
        self.reader.close()
        if self.log is not None:
            self._opened.active = self.log.active
        try:
            self._opened.close()
        except OSError as error:  # the log has it all
            _log.error("the index of %s could not be flushed: %s", self.path, error)


async def open_volume(
    path: str,
    *,
    read_only: bool = False,
    disk: Disk | None = None,
    clock: Clock | None = None,
    now: Callable[[], float] = time.time,
    segment_size: int | None = None,
    threads: Executor | None = None,
) -> Volume:
    """Open the volume in a folder, or make one where there is none.

    `read_only` writes nothing at all, and works on a disk that is read-only or full. `clock`
    gives stamps, `now` the seconds since 1970; tests give those, the disk and the threads.
    Raises `BadVolume` when the folder can't be used or another process has it open.
    """
    begin = partial(open_folder, disk or Disk(), path, read_only=read_only)
    opened = await asyncio.to_thread(begin) if threads is None else begin()
    make_log = partial(Log, clock=clock or Clock(), now=now, segment_size=segment_size)
    return Volume(opened, threads, make_log)
