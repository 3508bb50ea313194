"""The store over a bucket; see the package."""

from __future__ import annotations

import asyncio
import shutil
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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
from dolmen.stores.bulk import OneByOne, get_any
from dolmen.stores.objects.bucket import Bucket
from dolmen.stores.objects.head import Head, folder_of, head_of, heads_of, new_id
from dolmen.stores.objects.parts import GRACE, Upload, keep, read
from dolmen.stores.objects.sweep import sweep, sweep_staged, time_in
from dolmen.stores.objects.walk import walk
from dolmen.stores.verdict import (
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
_AT_ONCE = 32
"""Requests under way for one caller who reads many blobs."""
_ROUNDS = 5
_FIRST_SWEEP = 60
_NEXT_SWEEP = 3600


class ObjectsStore(OneByOne):
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
        self._clock, self._now = clock or Clock(), now
        self._closed, self._writing = False, 0
        self._written = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._trouble = ""

    # Heads

    async def _heads(self, name: str) -> list[Head]:
        """The heads of a name, the one that stands last."""
        if self._closed:
            raise Unavailable("the store is closed")
        return heads_of(await self._bucket.all(folder_of("heads", name))).get(name, [])

    async def _stored(self, head: Head) -> tuple[bytes, memoryview] | None:
        """The metadata of a head and the data in its object, checked; None where it is gone."""
        inside = 0 if head.data else head.size
        if head.metadata is not None and not inside:
            return head.metadata, memoryview(b"")
        body = await self._bucket.get(head.path)
        if body is None:
            return None
        split = len(body) - inside
        meta, data = bytes(body[: max(split, 0)]), body[max(split, 0) :]
        whole = split >= 0 if head.metadata is None else split == 0
        told = meta if head.metadata is None else head.metadata
        if (
            not whole
            or metadata.hash_of(told) != head.metadata_hash
            or (inside and checksum_of(data) != head.checksum)
        ):
            raise await self._quarantined(head)
        return told, data

    async def _info(self, head: Head) -> BlobInfo | None:
        """What a head tells; None where it is gone."""
        if head.metadata is not None or head.damaged:
            return head.info(head.metadata or b"")
        stored = await self._stored(head)
        return None if stored is None else head.info(stored[0])

    async def _standing(self, name: str) -> tuple[list[Head], BlobInfo | None]:
        """The heads of a name, and what the highest tells."""
        for _ in range(_ROUNDS):
            heads = await self._heads(name)
            if not heads:
                return [], None
            try:
                if (info := await self._info(heads[-1])) is not None:
                    return heads, info
            except Corrupt:
                continue  # from now on it is known to be
        raise _restless(name)

    async def _quarantined(self, head: Head) -> DolmenError:
        """What to raise for a head whose data is not what was stored. Marks it."""
        heads = [one for one in await self._heads(head.name) if one.id == head.id]
        if not heads:
            return Unavailable(f"{head.name} was replaced while it was read; read it again")
        for one in heads:
            await self._bucket.put(one.mark, b"")
        return Corrupt(f"{head.name} is damaged in {self._bucket.url}")

    async def _put_head(self, info: BlobInfo, id_: str, data: bytes | memoryview = b"") -> None:
        """Let a write stand. Whoever gives it up waits until it is known whether it does."""
        info.arrived = int(self._now())
        head = head_of(info, id_)
        body = data if head.metadata is not None else info.metadata + bytes(data)
        putting = asyncio.ensure_future(self._bucket.put(head.path, body))
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            await asyncio.gather(putting, return_exceptions=True)
            raise

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
        info = BlobInfo(check_name(name), payload.size, kind, 0, NO_CHECKSUM, metadata.check(meta))
        if info.size > LARGEST:
            raise TooLarge(f"{info.size} bytes are more than this store keeps ({LARGEST})")
        with self._write():
            upload = Upload(self._bucket, name, self._now)
            try:
                info.checksum = await upload.take(payload)
                if checksum is not None and checksum != info.checksum:
                    raise BadContent(f"the data of {name} does not have the checksum announced")
                heads, standing = await self._standing(name)
                verdict = judge_put(
                    name,
                    standing,
                    damaged=bool(heads) and heads[-1].damaged,
                    kind=kind,
                    checksum=info.checksum,
                    metadata=meta,
                    stamp=stamp,
                    clock=self._clock,
                )
                if verdict.action is Action.KEEP:
                    await upload.drop()
                else:
                    info.stamp = verdict.answer.stamp
                    await self._put_head(info, upload.id, upload.data)
            except OutcomeUnknown:
                raise  # the parts may be in use
            except DolmenError:
                await upload.drop()
                raise
            return verdict.answer

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        check_name(name)
        metadata.check(meta)
        with self._write():
            for _ in range(_ROUNDS):
                heads, standing = await self._standing(name)
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
                stored = await self._stored(head)
                if stored is not None:
                    info = replace(standing, stamp=stamp, metadata=meta)
                    id_ = head.id if head.data else new_id(self._now())
                    await self._put_head(info, id_, stored[1])
                    return verdict.answer
        raise _restless(name)

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        check_name(name)
        with self._write():
            _, standing = await self._standing(name)
            verdict = judge_delete(standing, stamp=stamp, clock=self._clock)
            if verdict.action is not Action.KEEP:
                info = BlobInfo(name, 0, Kind.TOMBSTONE, verdict.answer.stamp, NO_CHECKSUM)
                await self._put_head(info, new_id(self._now()))
            return verdict.answer

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        check_name(name)
        now = self._now()
        with self._write():
            heads, standing = await self._standing(name)
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
        stop = min(stop, head.size)
        start = min(start, stop)
        payload: Payload
        if head.data is None:
            payload = Bytes(data[start:stop])
        elif stop - start > WHOLE:
            payload = Stream(stop - start, lambda: self._pieces(head, start, stop))
        else:
            pieces = [piece async for piece in self._pieces(head, start, stop)]
            payload = Bytes(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return Blob(head.info(meta), payload)

    async def _read(self, name: str) -> tuple[Head, bytes, memoryview]:
        """The live head of a name, its metadata and the data in it."""
        for _ in range(_ROUNDS):
            head = _live(name, await self._heads(name))
            if (stored := await self._stored(head)) is not None:
                return head, *stored
        raise _restless(name)

    async def _pieces(self, head: Head, start: int, stop: int) -> AsyncIterator[memoryview]:
        try:
            async for piece in read(self._bucket, head, start, stop):
                yield piece
        except Corrupt as error:
            raise await self._quarantined(head) from error

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        under_way: deque[asyncio.Task[Blob | Failed]] = deque()
        try:
            for name in names:
                under_way.append(asyncio.ensure_future(get_any(self, name)))
                if len(under_way) == _AT_ONCE:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        heads, standing = await self._standing(check_name(name))
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
            return await self._info(head) or await self.stat(head.name, tombstones=True)
        except (NotFound, Corrupt):
            return None

    def _walk(
        self, wanted: Sequence[int], offset: str | None = None
    ) -> AsyncIterator[tuple[int, Sequence[str]]]:
        if self._closed:
            raise Unavailable("the store is closed")
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
            await self._bucket.put(path, len(told).to_bytes(2, "little") + told + value)

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
        condition = Condition(reasons=[self._trouble] if self._trouble else [])
        if self._folder is not None:
            disk = await asyncio.to_thread(shutil.disk_usage, self._folder)
            condition.free, condition.total = disk.free, disk.total
        return condition

    async def sweep(self) -> None:
        """Let go of what was overruled or abandoned a day ago; see the package."""
        await sweep(self._bucket, self._now())
        if self._folder is not None:
            await asyncio.to_thread(sweep_staged, self._folder)

    def sweep_from_time_to_time(self) -> None:
        """Sweep once a day, whichever process comes first, until the store is closed."""
        self._sweeper = asyncio.create_task(self._sweep_for_ever())

    async def _sweep_for_ever(self) -> None:
        await asyncio.sleep(_FIRST_SWEEP)
        while True:
            try:
                if await self._sweep_is_due():
                    await self.sweep()
                self._trouble = ""
            except DolmenError as error:
                self._trouble = f"what is not needed any more could not be swept: {error}"
            await asyncio.sleep(_NEXT_SWEEP)

    async def _sweep_is_due(self) -> bool:
        """Whether nobody swept within a day; if so, says that it is being done."""
        now = self._now()
        sweeps = await self._bucket.all("sweeps")
        if any(now - time_in(path) < GRACE for path in sweeps):
            return False
        await self._bucket.put(f"sweeps/{int(now):08x}", b"")
        await self._bucket.delete(sweeps)
        return True

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        while self._writing:
            self._written.clear()
            await self._written.wait()


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


def _restless(name: str) -> Unavailable:
    return Unavailable(f"{name} is being written by others all the time; try again")
