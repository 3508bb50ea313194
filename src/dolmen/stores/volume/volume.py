"""`volume:/path` a blob store in a folder: segments of records with an index beside them.

Durable: a write is answered when its record has been flushed to disk, and is then visible.
One process has a volume open; it holds the folder's lock. Opened read-only, nothing at all is
written, and what lies beyond the index's watermark is kept in memory.

Blobs up to 4 MiB are received whole in memory, within a budget, and appended to the log;
larger ones, and what the budget has no room for, go to files of their own.

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
from functools import partial
from typing import TypeVar

from dolmen.digests import Digests
from dolmen.errors import Corrupt, DolmenError, Full, NotFound, ReadOnly, TooLarge, Unavailable
from dolmen.names import check_name, checksum_of
from dolmen.payload import Bytes, read_whole
from dolmen.ready import Ready
from dolmen.record import Kind, block_sums
from dolmen.resolve import check, check_content, check_key
from dolmen.stamps import Clock
from dolmen.store import (
    EVERYTHING,
    NO_CHECKSUM,
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
from dolmen.stores.base import OneByOne
from dolmen.stores.volume import segment
from dolmen.stores.volume.bulk import verify_many, write_many
from dolmen.stores.volume.catalog import Change
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, key_of, unpack
from dolmen.stores.volume.folder import BLOB
from dolmen.stores.volume.index import digests_of
from dolmen.stores.volume.large import LargeFile, receive
from dolmen.stores.volume.listing import list_index
from dolmen.stores.volume.opening import Opened, open_folder
from dolmen.stores.volume.pending import Pending, Removal
from dolmen.stores.volume.reader import WHOLE, Reader

T = TypeVar("T")
CHUNK = 4 << 20
"""Blobs up to this size are appended to the log, larger ones have files of their own."""
SMALL = 65_536
"""Blobs up to this size are hashed on the event loop."""
BUDGET = 128 << 20
"""What payloads received whole take in memory together."""
LARGEST = 1 << 44
_log = logging.getLogger("dolmen.volume")


class Volume(OneByOne):
    """A volume that this process has open. Made by `open_volume`, on a running event loop."""

    capabilities = Capabilities(
        durable=True, largest=LARGEST, digests=True, ordered=True, conflicts=True
    )
    reads_ahead = 32

    def __init__(
        self,
        opened: Opened,
        *,
        clock: Clock | None,
        now: Callable[[], float],
        threads: Executor | None,
    ) -> None:
        self._opened, self._closed = opened, False
        self.folder, self.catalog = opened.folder, opened.catalog
        self._disk, self.path = opened.folder.disk, opened.folder.path
        self._notes, self._index = opened.notes, opened.catalog.index
        self._budget = BUDGET
        self._loop = asyncio.get_running_loop()
        self._threads = threads or ThreadPoolExecutor(4, thread_name_prefix="dolmen-volume")
        self._writer = threads or ThreadPoolExecutor(1, thread_name_prefix="dolmen-log")
        self.reader = Reader(self.folder, self._threads, self._quarantine)
        self.log: Log | None = None
        if opened.active is not None:
            self.log = Log(
                self.catalog,
                opened.active,
                loop=self._loop,
                thread=self._writer,
                threads=self._threads,
                sound=self.reader.sound,
                clock=clock or Clock(),
                now=now,
                segment_size=opened.segment_size,
                freed=self._remove_freed,
            )
        self._removing = False
        self._noting = asyncio.Lock()
        self._closing: asyncio.Task[None] | None = None

    def name_owner(self, owner: str) -> None:
        """Say in the folder who has the volume open, such as the address of a server."""
        if self._opened.lock is not None and self.log is not None:
            self.folder.name_owner(self._opened.lock, f"process {os.getpid()}, {owner}")

    # Writing

    def write(self, write: Write) -> Awaitable[Put]:
        """See `BlobStore.write`."""
        check(write)
        if write.kind in (Kind.TOUCH, Kind.TOMBSTONE):
            touched = write.checksum if write.kind == Kind.TOUCH else None
            return self.submit(Pending(write, touched or NO_CHECKSUM))
        payload = write.payload
        data = payload.whole
        if data is not None and len(data) <= SMALL:
            checksum = checksum_of(data)
            check_content(write, checksum)
            return self.submit(Pending(write, checksum, data))
        if payload.size > CHUNK or (data is None and SMALL < payload.size > self._budget):
            return self._write_alone(write)
        return self._write_whole(write)

    def submit(self, pending: Pending) -> Awaitable[Put]:
        """Have a write decided and carried out; raises `ReadOnly`, `Unavailable`."""
        if self._closed:
            raise self._is_closed()
        if self.log is None:
            raise ReadOnly(f"the volume {self.path} was opened read-only")
        return self.log.submit(pending)

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
        if self.log is None or self.log.broken is not None or self._closed:
            return await self.submit(Pending(write, NO_CHECKSUM))  # says why not
        self.log.check_room(size)
        number = self.catalog.take_number()
        file = LargeFile(self.folder, number, write)
        pending: Pending | None = None
        try:
            checksum = await receive(file, write, self._threads)
            check_content(write, checksum)
            pending = Pending(write, checksum, alone=(number, segment.SEGMENT_HEADER))
            return await self.submit(pending)
        except OSError as error:
            raise self._refused(error) from error
        except RuntimeError as error:  # its threads have gone
            raise (self._is_closed() if self._closed else error) from error
        finally:
            if (pending is None or pending.put is None) and not self._closed:
                self.in_thread(file.remove, self.catalog)

    def _refused(self, error: OSError) -> DolmenError:
        """What an error says of an upload that nothing refers to yet."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return Full(f"{self.path} has no room for it ({error}): nothing was stored")
        return Unavailable(f"{self.path} can't be written ({error}): nothing was stored")

    def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.write_many`. Small writes share commits without a task for each."""
        return write_many(self, writes)

    async def remove(self, remove: Remove, *, min_age: float) -> bool:
        """See `OneByOne.remove`."""
        name = check_name(remove.name)
        put = await self.submit(Removal(name, if_stamp=remove.if_stamp, min_age=min_age))
        return put.outcome is Outcome.CREATED

    # Reading

    def get(self, name: str, *, byte_range: Range | None = None) -> Awaitable[Blob]:
        """See `BlobStore.get`. The answer is `Ready` where the disk need not be waited for."""
        entry = self.catalog.found.get(name) or self._live(name)
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
        if value is None:
            check_name(name)  # here, as whatever has an entry has a good name
            raise NotFound(f"{name} is not here")
        entry = unpack(value)
        if entry.kind == Kind.TOMBSTONE:
            raise NotFound(f"{name} was deleted", stamp=entry.stamp)
        if entry.damaged:
            raise Corrupt(
                f"this copy of {name} is quarantined, because it failed its check; replication "
                "replaces it from another copy"
            )
        self.catalog.keep(name, entry)
        return entry

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """See `BlobStore.verify_many`: also the heads of records, which a reindex needs."""
        return verify_many(self._live, self.reader, names)

    def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        return list_index(self.in_thread, self._index, listing)

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        return await self.in_thread(digests_of, bytes(self._index.slots))

    def _quarantine(self, name: str, entry: Entry) -> None:
        """Mark a copy that failed its check, unless another is current by now."""
        key = key_of(name)
        if self._closed or (self.log is not None and self.log.writes_under_way(key)):
            return
        _log.error(
            "the copy of %s in file %08x at byte %d is damaged and quarantined; check the disk",
            name,
            *entry.data,
        )
        try:
            current = self.catalog.get(key)
            if current is not None and current.data == entry.data and not current.damaged:
                change = Change()
                change.put(key, name.encode(), current, current._replace(damaged=True))
                self.catalog.apply(change, *self.catalog.watermark[:2])
        except OSError as error:
            _log.error("the copy of %s could not be quarantined: %s", name, error)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        check_key(key)
        if self.log is None:
            raise ReadOnly(f"the volume {self.path} was opened read-only")
        async with self._noting:
            notes = self._notes | {key: value}
            try:
                await self.in_thread(self.folder.write_notes, notes)
            except OSError as error:
                raise self._refused(error) from error
            self._notes = notes

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        return dict(self._notes)

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        try:
            return await self.in_thread(self._condition)
        except OSError as error:
            return Condition(writable=False, reasons=[f"{self.path} can't be looked at: {error}"])

    def _condition(self) -> Condition:
        free, total, read_only = self._disk.space(self.path)
        reasons, remarks, log = [], [*self._opened.damaged], self.log
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

    def _remove_freed(self) -> None:
        """Remove, in the background, files of large blobs that were replaced or deleted."""
        numbers = sorted(self.catalog.unreferenced)
        if not numbers or self._removing or self._closed:
            return
        self._removing = True
        for number in numbers:
            self.reader.close_file(number)

        def removed(done: asyncio.Future[None]) -> None:
            self._removing = False
            try:
                done.result()
                if not self._closed:
                    self.catalog.forget_files([], numbers)
            except OSError as error:  # the next opening tries again
                _log.error("files of deleted blobs could not be removed: %s", error)

        self.in_thread(self.folder.remove, numbers, BLOB).add_done_callback(removed)

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
        try:
            self._index.flush()
            self._index.close()
        except OSError as error:  # the log has it all
            _log.error("the index of %s could not be flushed: %s", self.path, error)
        if self.log is not None:
            self._disk.close(self.log.active.fd)
        if self._opened.lock is not None:
            self._disk.close(self._opened.lock)


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
    begin = partial(open_folder, disk or Disk(), path, read_only, segment_size)
    opened = await asyncio.to_thread(begin) if threads is None else begin()
    return Volume(opened, clock=clock, now=now, threads=threads)
