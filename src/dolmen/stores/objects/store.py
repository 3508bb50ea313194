"""The store over a bucket; see the package."""

from __future__ import annotations

import asyncio
import shutil
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dolmen import metadata
from dolmen.digests import Digests, Slot, hash_of_entry
from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, Stream
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import (
    ALL_PARTITIONS,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Failed,
    Put,
    Range,
)
from dolmen.stores.objects.bucket import Bucket
from dolmen.stores.objects.head import Head, folder_of, heads_of, new_id
from dolmen.stores.objects.ledger import ROUNDS, Ledger, restless
from dolmen.stores.objects.parts import Upload, keep, read
from dolmen.stores.objects.sweep import Sweeper
from dolmen.stores.objects.walk import walk
from dolmen.stores.old_bulk import UnderWay, Upkeep, check_travels
from dolmen.stores.old_verdict import (
    NO_CHECKSUM,
    Action,
    judge_delete,
    judge_put,
    judge_touch,
    may_remove,
)

LARGEST = 1 << 40
WHOLE = 1 << 20
"""What is read of a blob is read before it is answered, up to this size; more is streamed."""
WINDOW = 512
"""Blobs that are looked up together when many are read or written."""
_HELD = 16 << 20
"""Bytes of blobs held for that."""
_AT_ONCE = 64
"""Of those, how many are read or written at once."""


class ObjectsStore(Upkeep):
    """A blob store in a bucket. `now` returns seconds since 1970, `clock` gives stamps.

    `folder` is the bucket, where it is a folder of a file system: such are not durable.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        folder: Path | None = None,
        clock: Clock | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.capabilities = Capabilities(
            durable=folder is None, largest=LARGEST, digests=False, ordered=False, conflicts=False
        )
        self._bucket, self._folder = bucket, folder
        self._ledger = Ledger(bucket, now)
        self._clock, self._now = clock or Clock(), now
        self._closed, self._writing = False, 0
        self._written = asyncio.Event()
        self.sweeper = Sweeper(bucket, folder, now)

    @contextmanager
    def _write(self) -> Iterator[None]:
        """What is done inside is waited for by `aclose`."""
        if self._closed:
            raise Unavailable("the store is closed")
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            self._written.set()

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
        """See `BlobStore.put`. Where only the stamp changes the data is stored anew, too."""
        info = BlobInfo(check_name(name), payload.size, kind, stamp or 0, NO_CHECKSUM, meta)
        return await self._put(info, payload, stamp, checksum)

    async def _put(
        self,
        info: BlobInfo,
        payload: Payload,
        stamp: int | None,
        checksum: bytes | None,
        known: Sequence[Head] | None = None,
    ) -> Put:
        metadata.check(info.metadata)
        if info.size > LARGEST:
            raise TooLarge(f"{info.size} bytes are more than this store keeps ({LARGEST})")
        with self._write():
            upload = Upload(self._bucket, info.name, self._now)
            try:
                info.checksum = await upload.take(payload)
                if checksum not in (None, info.checksum):
                    raise BadContent(
                        f"the data of {info.name} does not have the checksum announced"
                    )
                heads, standing = await self._ledger.standing(info.name, known)
                verdict = judge_put(
                    info.name,
                    standing,
                    damaged=bool(heads) and heads[-1].damaged,
                    kind=info.kind,
                    checksum=info.checksum,
                    metadata=info.metadata,
                    stamp=stamp,
                    clock=self._clock,
                )
                if verdict.action is Action.KEEP:
                    await upload.drop()
                else:
                    info.stamp = verdict.answer.stamp
                    await self._ledger.add(info, upload.id, upload.data)
            except OutcomeUnknown:
                raise  # the parts may be in use
            except DolmenError:
                await upload.drop()
                raise
            return verdict.answer

    async def put_many(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.put_many`. What is in memory is looked up and written together."""
        window: dict[str, Blob] = {}
        held = 0
        async for blob in blobs:
            alone = blob.payload.whole is None  # it must be read before the next is asked for
            if alone or blob.info.name in window:
                async for answer in self._put_window(window):
                    yield answer
            if alone:
                yield await self._put_any(blob)
                continue
            window[blob.info.name] = blob
            held += blob.info.size
            if len(window) == WINDOW or held >= _HELD:
                held = 0
                async for answer in self._put_window(window):
                    yield answer
        async for answer in self._put_window(window):
            yield answer

    async def _put_window(self, window: dict[str, Blob]) -> AsyncIterator[Put | Failed]:
        """Write these and forget them."""
        known = await self._ledger.look_up(window)
        blobs = list(window.values())
        window.clear()
        async for answer in _together(self._put_any(b, known.get(b.info.name)) for b in blobs):
            yield answer

    async def _put_any(self, blob: Blob, known: Sequence[Head] | None = None) -> Put | Failed:
        info = blob.info
        try:
            check_travels(blob)
            if info.kind == Kind.TOMBSTONE:
                return await self._delete(info.name, info.stamp, known)
            checksum = info.checksum if any(info.checksum) else None
            return await self._put(
                replace(info, size=blob.payload.size), blob.payload, info.stamp, checksum, known
            )
        except DolmenError as error:
            return Failed(info.name, error)

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        check_name(name)
        metadata.check(meta)
        with self._write():
            for _ in range(ROUNDS):
                heads, standing = await self._ledger.standing(name)
                verdict = judge_touch(
                    name,
                    standing,
                    damaged=bool(heads) and heads[-1].damaged,
                    checksum=checksum,
                    metadata=meta,
                    stamp=stamp,
                )
                if verdict.action is Action.KEEP:
                    return verdict.answer
                head = heads[-1]
                assert standing is not None
                stored = await self._ledger.stored(head)
                if stored is not None:
                    info = replace(standing, stamp=stamp, metadata=meta)
                    id_ = head.id if head.data else new_id(self._now())
                    await self._ledger.add(info, id_, stored[1])
                    return verdict.answer
        raise restless(name)

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        return await self._delete(check_name(name), stamp)

    async def _delete(
        self, name: str, stamp: int | None, known: Sequence[Head] | None = None
    ) -> Put:
        with self._write():
            _, standing = await self._ledger.standing(name, known)
            verdict = judge_delete(standing, stamp=stamp, clock=self._clock)
            if verdict.action is not Action.KEEP:
                info = BlobInfo(name, 0, Kind.TOMBSTONE, verdict.answer.stamp, NO_CHECKSUM)
                await self._ledger.add(info, new_id(self._now()))
            return verdict.answer

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        check_name(name)
        now = self._now()
        with self._write():
            heads, standing = await self._ledger.standing(name)
            if not may_remove(standing, if_stamp=if_stamp, min_age=min_age, now=now):
                return False
            for folder in {head.data for head in heads if head.data}:
                await keep(self._bucket, folder, now)  # a touch may be about to use it again
            *lower, highest = [head.path for head in heads]
            await self._bucket.delete(lower)
            await self._bucket.delete([highest])
            await self._bucket.delete([head.mark for head in heads if head.damaged])
            return True

    # Reading

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        head, meta, data = await self._read(check_name(name))
        start, stop = byte_range or (0, head.size)
        return Blob(head.info(meta), await self._payload(head, data, start, min(stop, head.size)))

    async def _read(
        self, name: str, known: Sequence[Head] | None = None, *, tombstones: bool = False
    ) -> tuple[Head, bytes, memoryview]:
        """What stands under a name, its metadata and the data in its head."""
        for _ in range(ROUNDS):
            heads = await self._ledger.look(name) if known is None else known
            head, known = _live(name, heads, tombstones=tombstones), None
            if (stored := await self._ledger.stored(head)) is not None:
                return head, *stored
        raise restless(name)

    async def _payload(self, head: Head, data: memoryview, start: int, stop: int) -> Payload:
        if head.data is None:
            return Bytes(data[start:stop])
        if stop - start > WHOLE:
            return Stream(stop - start, lambda: self._pieces(head, start, stop))
        pieces = [piece async for piece in self._pieces(head, start, stop)]
        return Bytes(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def _pieces(self, head: Head, start: int, stop: int) -> AsyncIterator[memoryview]:
        try:
            async for piece in read(self._bucket, head, start, stop):
                yield piece
        except Corrupt as error:
            raise await self._ledger.quarantined(head) from error

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        for first in range(0, len(names), WINDOW):
            some = names[first : first + WINDOW]
            known = await self._ledger.look_up(some)
            async for answer in _together(self._get_any(name, known.get(name)) for name in some):
                yield answer

    async def _get_any(self, name: str, known: Sequence[Head] | None) -> Blob | Failed:
        try:
            head, meta, data = await self._read(check_name(name), known, tombstones=True)
            return Blob(head.info(meta), await self._payload(head, data, 0, head.size))
        except DolmenError as error:
            return Failed(name, error)

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        heads, standing = await self._ledger.standing(check_name(name))
        _live(name, heads, tombstones=tombstones)
        assert standing is not None
        return standing

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`. The names of one partition are held in memory and sorted."""
        start, offset = (-1, ""), None
        wanted = partitions if isinstance(partitions, range) else list(partitions)
        if after is not None:
            start = (partition_of(after), after)
            wanted = wanted[bisect_left(wanted, start[0]) :]
            if start[0] in wanted[:1]:
                offset = f"{folder_of('heads', after)}0"
        async for partition, paths in self._walk(wanted, offset):
            found = heads_of(paths)
            chosen = [
                found[name][-1]
                for name in sorted(found)
                if (partition, name) > start
                and name.startswith(prefix)
                and not found[name][-1].damaged
            ]
            for first in range(0, len(chosen), _AT_ONCE):
                some = chosen[first : first + _AT_ONCE]
                asked = await asyncio.gather(
                    *(self._look_again(head) for head in some if head.metadata is None)
                )
                answers = iter(asked)
                for head in some:
                    meta = head.metadata
                    info = next(answers) if meta is None else head.info(meta)
                    if info is not None and (tombstones or info.kind != Kind.TOMBSTONE):
                        yield info

    async def _look_again(self, head: Head) -> BlobInfo | None:
        """What a head found in a listing tells, or what stands in its place by now."""
        try:
            return await self._ledger.info(head) or await self.stat(head.name, tombstones=True)
        except (NotFound, Corrupt):
            return None

    def _walk(
        self, wanted: Sequence[int], offset: str | None = None
    ) -> AsyncIterator[tuple[int, Sequence[str]]]:
        return walk(self._bucket, "heads", wanted, offset)

    async def digests(self) -> Digests:
        """See `BlobStore.digests`. Worked out from a listing."""
        slots: dict[int, Slot] = {}
        async for partition, paths in self._walk(ALL_PARTITIONS):
            slot = slots[partition] = Slot()
            for name, heads in heads_of(paths).items():
                head = heads[-1]
                if not head.damaged:
                    entry = hash_of_entry(name.encode(), *head.rank)
                    slot.add(head.size, entry)
        return Digests(slots)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        told = key.encode()
        with self._write():
            path = f"notes/{checksum_of(told).hex()}"
            await self._bucket.replace(path, len(told).to_bytes(2, "little") + told + value)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        notes = {}
        for path in await self._bucket.all("notes"):
            if (body := await self._bucket.get(path)) is not None:
                stop = 2 + int.from_bytes(body[:2], "little")
                notes[str(body[2:stop], "utf-8")] = bytes(body[stop:])
        return notes

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        await self._bucket.all("sweeps")  # it answers
        condition = Condition(reasons=[self.sweeper.trouble] if self.sweeper.trouble else [])
        if self._folder is not None:
            disk = await asyncio.to_thread(shutil.disk_usage, self._folder)
            condition.free, condition.total = disk.free, disk.total
            condition.remarks.append(
                "not durable: what was written last may not survive a power cut"
            )
        return condition

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        self._closed = True
        await self.sweeper.aclose()
        while self._writing:
            self._written.clear()
            await self._written.wait()
        self._bucket.close()


def _live(name: str, heads: Sequence[Head], *, tombstones: bool = False) -> Head:
    """The head that stands; raises `NotFound` or `Corrupt`."""
    if not heads:
        raise NotFound(f"{name} is not here")
    head = heads[-1]
    if head.damaged:
        raise Corrupt(f"{name} is damaged here")
    if head.kind == Kind.TOMBSTONE and not tombstones:
        raise NotFound(f"{name} was deleted", stamp=head.stamp)
    return head


T = TypeVar("T")


async def _together(calls: Iterable[Coroutine[object, object, T]]) -> AsyncIterator[T]:
    """The answers of calls, in order; some of them are under way at once."""
    async with UnderWay[T]() as under_way:
        for call in calls:
            under_way.add(call)
            if len(under_way) == _AT_ONCE:
                yield await under_way.next()
        while under_way:
            yield await under_way.next()
