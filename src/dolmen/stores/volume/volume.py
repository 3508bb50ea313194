"""`volume:/path` a blob store in a folder: segments of records with an index beside them.

Durable: a put has been answered when its record has been flushed to disk, and is
then visible to every process that has the volume open. Blobs up to 16 TiB; lists
and digests come from the index. Any number of processes of one machine may have
it open. `docs/disk-format.md` describes the folder, `docs/durability.md` why no
order of crash, refusal, restart and reindex loses or invents anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import lmdb

from dolmen import metadata
from dolmen.closing import closing
from dolmen.digests import Digests
from dolmen.errors import Corrupt, DolmenError, NotFound, TooLarge, Unavailable
from dolmen.names import check_name, checksum_of
from dolmen.payload import Bytes, Payload, read_whole
from dolmen.record import Kind, block_sums
from dolmen.stamps import Clock
from dolmen.store import (
    ALL_PARTITIONS,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Failed,
    Outcome,
    Put,
    Range,
)
from dolmen.stores.old_bulk import Upkeep
from dolmen.stores.volume.bulk import get_many, put_many
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.group import Group
from dolmen.stores.volume.keeper import PAUSE, Keeper, ProcessKeeper, ThreadKeeper
from dolmen.stores.volume.key import key_of
from dolmen.stores.volume.layout import doubt, prepare, usable
from dolmen.stores.volume.listing import list_damaged, list_index
from dolmen.stores.volume.merge import Merge
from dolmen.stores.volume.opening import Membership
from dolmen.stores.volume.reads import WHOLE, Files, Reader
from dolmen.stores.volume.upload import Upload
from dolmen.stores.volume.write import Op, Write, compare

T = TypeVar("T")
_log = logging.getLogger("dolmen.volume")
CHUNK = 4 << 20
"""Streamed blobs up to this size go to the active segment, larger ones to their own."""
SMALL = 65_536
"""Blobs up to this size are gathered in memory even when they are streamed."""
LARGEST = 1 << 44
_HEADLESS = (
    "the head of the record of {} is damaged: it can still be read, but dolmen reindex would lose "
    "it; make sure that there is another copy"
)
_LOOK = 5.0
"""Seconds between two looks for open segments that are gone."""


class VolumeStore(Upkeep):
    """A volume that this process has open. Made by `open_volume`, on a running event loop."""

    capabilities = Capabilities(
        durable=True, largest=LARGEST, digests=True, ordered=True, conflicts=True
    )

    def __init__(
        self,
        path: str,
        *,
        disk: Disk,
        clock: Clock,
        now: Callable[[], float],
        segment_size: int | None,
    ) -> None:
        """Open the volume. Blocks while it recovers; see `open_volume`."""
        self.path = path
        self._clock = clock
        self._disk = disk
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        with ExitStack() as leaving, usable(path):
            self._layout = layout = prepare(disk, path)
            membership = Membership(disk, layout)
            leaving.callback(membership.leave)
            membership.join()
            self._recover_dead = membership.recover_dead
            index, recent = self._index, self._recent = membership.index, membership.recent
            self._merge = Merge(disk, layout, index, recent)
            leaving.callback(self._merge.close)
            self._log = Log(
                disk, layout, index, recent, clock=clock, now=now, segment_size=segment_size
            )
            self._executor = ThreadPoolExecutor(4, thread_name_prefix="dolmen-volume")
            self._files = Files(disk, layout)
            leaving.callback(self._files.close)
            self._reader = Reader(disk, self._files, self._in_thread, self._quarantine)
            self._leaving = leaving.pop_all()

    def start(self, *, apart: bool) -> None:
        """Begin to commit and to merge (`apart`: in a process of its own). On the event loop."""
        self._loop = asyncio.get_running_loop()
        with usable(self.path):
            self._keeper: Keeper = (
                ProcessKeeper(self.path)
                if apart
                else ThreadKeeper(self._merge, self._recent, pause=PAUSE)
            )
        self._group = Group(self._log, recover=self._recover_dead)
        self._look_for_gone()

    # Writing

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
        size = payload.size
        if payload.whole is None and size > SMALL:
            return await self._put_streamed(name, payload, meta, stamp, kind, checksum)
        data = await read_whole(payload)
        if size > SMALL:
            found, sums = await self._in_thread(_sums, data)
        else:
            found, sums = checksum_of(data), block_sums(data)
        compare(name, found, checksum)
        return await self._group.submit(
            Write(
                Op.PUT,
                name,
                stamp=stamp,
                kind=kind,
                checksum=found,
                metadata=meta,
                data=data,
                sums=sums,
                length=size,
            )
        )

    async def _put_streamed(
        self,
        name: str,
        payload: Payload,
        meta: bytes,
        stamp: int | None,
        kind: Kind,
        checksum: bytes | None,
    ) -> Put:
        size = payload.size
        if size > LARGEST:
            raise TooLarge(f"{name} is {size} bytes; a volume keeps up to {LARGEST}")
        upload = Upload(self._log, self._in_thread, alone_above=CHUNK)
        try:
            place = await upload.receive(payload, len(name) + len(meta))
            compare(name, place.checksum, checksum)
            write = Write(
                Op.PUT,
                name,
                stamp=stamp,
                kind=kind,
                checksum=place.checksum,
                metadata=meta,
                length=size,
                place=place,
            )
            return await upload.commit(self._group.submit(write))
        finally:
            upload.end()

    def put_many(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.put_many`. Small blobs share commits without waiting for each other."""
        return put_many(self, self._group, blobs)

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        check_name(name)
        metadata.check(meta)
        return await self._group.submit(
            Write(Op.TOUCH, name, stamp=stamp, checksum=checksum, metadata=meta)
        )

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        check_name(name)
        return await self._group.submit(Write(Op.DELETE, name, stamp=stamp))

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        check_name(name)
        put = await self._group.submit(Write(Op.REMOVE, name, stamp=if_stamp, min_age=min_age))
        return put.outcome is Outcome.CREATED

    # Reading

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        entry = self._live(name)
        try:
            if byte_range is None and entry.length <= WHOLE:
                data = self._reader.cached(name.encode(), entry)
                if data is not None:
                    return Blob(entry.info(name), Bytes(data))
            payload = await self._reader.read(name, entry, byte_range)
        except FileNotFoundError:
            # The segment went while we looked: the entry says by now where the blob lies.
            entry = self._live(name)
            try:
                payload = await self._reader.read(name, entry, byte_range)
            except FileNotFoundError as error:
                self._quarantine(name, entry)
                raise Corrupt(
                    f"segment {entry.segment:08x}, which holds {name}, is missing from "
                    f"{self.path}; replication brings the copy back"
                ) from error
        return Blob(entry.info(name), payload)

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        return self._live(name, tombstones=tombstones).info(name)

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        return get_many(self, self._look_up, self._reader, names)

    async def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """See `BlobStore.verify_many`: also the heads of records, which a reindex needs.

        A blob whose head alone is damaged can still be read, so it is not quarantined.
        """
        async with closing(super().verify_many(names)) as answers:
            async for answer in answers:
                if not isinstance(answer, Failed) and await self._head_is_damaged(answer):
                    yield Failed(answer.name, Corrupt(_HEADLESS.format(answer.name)))
                else:
                    yield answer

    async def _head_is_damaged(self, info: BlobInfo) -> bool:
        if info.kind == Kind.TOMBSTONE:
            return False
        try:
            return not await self._reader.head_is_sound(info.name, self._live(info.name))
        except (DolmenError, FileNotFoundError):
            return False  # it was replaced, deleted or moved since it was read

    def _look_up(self, names: Sequence[str]) -> dict[str, Entry]:
        """The entries of those of the names that have one; none when they can't be told."""
        if self._closed:
            return {}
        try:
            keys = {key_of(name): name for name in names}
            found = self._recent.get_many([*keys])
            found.update(self._index.get_many([key for key in keys if key not in found]))
        except (lmdb.Error, UnicodeEncodeError):
            return {}
        return {keys[key]: unpack(value) for key, value in found.items()}

    def _live(self, name: str, *, tombstones: bool = False) -> Entry:
        if self._closed:
            raise Unavailable(f"the volume {self.path} is closed")
        try:
            key = key_of(name)
            value = self._recent.get(key) or self._index.get(key)
        except (lmdb.Error, UnicodeEncodeError) as error:
            check_name(name)  # one that is too long is none that LMDB takes
            raise Unavailable(f"the index of {self.path} can't be read: {error!r}") from error
        if value is None:
            check_name(name)  # here, as whatever has an entry has a good name
            raise NotFound(f"{name} is not here")
        entry = unpack(value)
        if entry.kind > Kind.MANIFEST or entry.damaged:
            _refuse(name, entry, tombstones=tombstones)
        return entry

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        await self._merged()
        pages = partial(self._ask, self._index.page)
        async for info in list_index(pages, partitions, after, prefix, tombstones=tombstones):
            yield info

    async def quarantined(self) -> AsyncIterator[str]:
        """See `BlobStore.quarantined`."""
        await self._merged()
        async for name in list_damaged(partial(self._ask, self._index.page)):
            yield name

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        await self._merged()
        return await self._ask(self._index.digests)

    async def _merged(self) -> None:
        if await self._ask(self._recent.count):
            await self._ask(self._merge.merge)

    def _quarantine(self, name: str, entry: Entry) -> None:
        _log.error(
            "the copy of %s in segment %08x at byte %d is damaged and quarantined; check the disk",
            name,
            entry.segment,
            entry.offset,
        )
        if not self._closed:
            marking = self._in_thread(self._log.quarantine, key_of(name), entry)
            marking.add_done_callback(_log_failure)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        await self._ask(self._index.note, key, value)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        return await self._ask(self._index.notes)

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        free, total = await self._ask(self._disk.space, self.path)
        reasons = []
        if self._log.broken is not None:
            reasons.append(f"takes no writes: {self._log.broken}")
        if free < self._log.appender.reserve:
            reasons.append("the disk is full: puts are refused")
        writable = not reasons
        if await self._ask(self._index.doubtful):
            reasons.append(doubt(self._layout))
        elif self._keeper.failing is not None:
            reasons.append(
                "the index falls behind, so lists may fail and the next opening takes longer: "
                f"{self._keeper.failing}; check the disk and its room. It is tried again all "
                "the time; should it go on failing, start the server again"
            )
        return Condition(free, total, writable=writable, reasons=reasons)

    def _look_for_gone(self) -> None:
        """Let go of segments that were compacted, so that their room is free."""
        gone = self._files.take_gone()
        if gone:
            self._in_thread(gone.clear)  # the last to close a long file waits for the disk
        self._looking = self._loop.call_later(_LOOK, self._look_for_gone)

    def _in_thread(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        if self._closed:
            raise Unavailable(f"the volume {self.path} is closed")
        return self._loop.run_in_executor(self._executor, call, *arguments)

    async def _ask(self, call: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._in_thread(call, *arguments)
        except (OSError, lmdb.Error) as error:
            raise Unavailable(f"the volume {self.path} can't be asked: {error!r}") from error

    async def aclose(self) -> None:
        """Finish what is queued, merge it, and let go. Goes on to the end if it is given up."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._end())
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        self._looking.cancel()
        await self._group.close()
        await self._keeper.close()
        await self._loop.run_in_executor(None, self._close)

    def _close(self) -> None:
        try:
            with self._leaving:
                self._executor.shutdown(wait=True)
                self._log.close()
                if self._log.broken is None:
                    self._merge.merge()
        except (OSError, lmdb.Error, Unavailable) as error:
            # What was answered is in the segments; the next opening finds it there.
            _log.error("the volume %s could not be closed in order: %r", self.path, error)


async def open_volume(
    path: str,
    *,
    disk: Disk | None = None,
    clock: Clock | None = None,
    now: Callable[[], float] = time.time,
    segment_size: int | None = None,
    apart: bool = False,
) -> VolumeStore:
    """Open the volume in a folder, making one where there is none or an empty one.

    `apart` has it merged by a process of its own, as a server wants it. Raises
    `BadVolume` when the folder can't be used.
    """
    opener = ThreadPoolExecutor(1, thread_name_prefix="dolmen-open")
    opening = opener.submit(
        VolumeStore,
        path,
        disk=disk or Disk(),
        clock=clock or Clock(),
        now=now,
        segment_size=segment_size,
    )
    opener.shutdown(wait=False)
    try:
        store = await asyncio.wrap_future(opening)
        store.start(apart=apart)
    except BaseException:
        opening.add_done_callback(_let_go)  # called here if it is done, else by its thread
        raise
    return store


def _let_go(opened: Future[VolumeStore]) -> None:
    """Close a volume nobody waits for any more, if it came to be opened."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result()._close()  # noqa: SLF001 - of this module


def _refuse(name: str, entry: Entry, *, tombstones: bool) -> None:
    """Raise what is to say of an entry that is no sound blob, unless it is a wanted tombstone."""
    if entry.kind == Kind.REMOVAL:
        raise NotFound(f"{name} is not here")
    if entry.damaged:
        raise Corrupt(f"this copy of {name} is damaged and quarantined")
    if entry.kind == Kind.TOMBSTONE and not tombstones:
        raise NotFound(f"{name} was deleted", stamp=entry.stamp)


def _sums(data: bytes | memoryview) -> tuple[bytes, bytes]:
    return checksum_of(data), block_sums(data)


def _log_failure(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("a damaged copy could not be marked: %r", error)
