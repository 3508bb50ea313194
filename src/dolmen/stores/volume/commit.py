"""Commit: decide, append, flush once, show, answer.

Writes that arrive while the disk is busy form the next batch. The event loop decides each
against the index (conflict, unchanged, superseded), so a refused write leaves no record and
replaying the log gives what was answered. One write and one flush, in a thread; then the
entries become visible, all at once with the watermark; then the writes are answered. Only
one batch is under way, and of one name at most one write is in it, so a decision is only ever
made against what is on disk.

A write or flush that fails makes every write of the batch `OutcomeUnknown` and the volume
read-only; it is never tried again, since after a failed flush nobody knows what is on disk. A
full disk is different: the batch is cut off again, durably, puts get `Full`, and what makes
room or keeps data (deletes, touches, moves) is tried once more with the reserve released.

Read first: `pending`, `segment`, `catalog`. `docs/durability.md` has the argument.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor

from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.ready import Answer, resume
from dolmen.record import Kind, block_sums, encode_head
from dolmen.resolve import Action, Decision
from dolmen.stamps import Clock
from dolmen.store import Put
from dolmen.stores.volume import segment
from dolmen.stores.volume.catalog import Catalog, Change
from dolmen.stores.volume.disk import WRITE_MAX, Buffer
from dolmen.stores.volume.entry import Entry, key_of
from dolmen.stores.volume.folder import BLOB
from dolmen.stores.volume.pending import Part, Pending
from dolmen.stores.volume.reader import Reader

_log = logging.getLogger("dolmen.volume")
_SEGMENT_SIZE = 1 << 30
_BATCH = WRITE_MAX // 3
"""Writes in a batch at most: each is up to three buffers."""
_BATCH_BYTES = 32 << 20
_FLUSH_BYTES, _FLUSH_WRITES = 256 << 20, 20_000
"""The index is flushed after so much, so that the next opening has little to scan."""
_OFFSET_MAX = (1 << 32) - (64 << 20)
_SCARCE = 8 << 20
"""With less room than this the reserve is released, before the index meets the end of it."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Log:
    """The end of the log of one open volume. On the event loop, with one thread that writes."""

    def __init__(
        self,
        catalog: Catalog,
        active: segment.Active,
        reader: Reader,
        *,
        thread: Executor,
        threads: Executor,
        clock: Clock,
        now: Callable[[], float],
        segment_size: int | None,
    ) -> None:
        self._catalog, self.active, self._reader = catalog, active, reader
        self._folder = active.folder
        self._loop, self._thread, self._threads = asyncio.get_running_loop(), thread, threads
        self._clock, self._now = clock, now
        self._queue: list[Pending] = []
        self._batch: list[Pending] = []
        self._busy = False
        self.free, total, _ = self._folder.disk.space(self._folder.path)
        self._segment_size = segment_size or min(_SEGMENT_SIZE, max(total // 64, 1 << 20))
        self.reserve = self._segment_size + min(64 << 20, total // 32)
        """Puts leave so much of the disk free: for compaction, deletes and the index."""
        self.broken: str | None = None
        """Why it takes no more writes."""
        self._unflushed_bytes = self._unflushed_writes = 0
        self._flushing = False
        self._beside: set[asyncio.Task[None]] = set()
        """Copies that are read before they are touched, and files that are removed."""
        self._removing = False
        self._rested: asyncio.Future[None] | None = None

    # The event loop's part

    def submit(self, pending: Pending) -> Answer[Put]:
        """Have a write decided and carried out; raises `ReadOnly`."""
        answer: Answer[Put] = Answer(self._loop)
        self.submit_part(pending, answer)
        return answer

    def submit_part(self, pending: Pending, answer: Answer[Put] | Part) -> None:
        """The same, answered there."""
        self._check_writable()
        pending.key = key_of(pending.write.name)
        pending.answer = answer
        self._wake(pending)

    def _check_writable(self) -> None:
        """Raise `ReadOnly` when a write or flush has failed."""
        if self.broken is not None:
            raise ReadOnly(
                f"the volume {self._folder.path} takes no writes because {self.broken}; check the "
                "disk and the system's log, then start the server again"
            )

    def check_room(self, size: int) -> None:
        """Raise `Full` unless so many bytes more leave the reserve free, or `ReadOnly`."""
        self._check_writable()
        if self.free - size < self.reserve:
            self.free = self._folder.disk.space(self._folder.path)[0]
        if self.free - size < self.reserve or self.active.end > _OFFSET_MAX:
            raise self._full()

    def writes_under_way(self, key: bytes) -> bool:
        """Whether the batch that is being written has a write of this name."""
        return any(pending.key == key for pending in self._batch)

    async def close(self) -> None:
        """Return when everything submitted was answered."""
        while self._busy or self._beside:
            if self._busy:
                self._rested = self._loop.create_future()
                await self._rested
            else:
                await asyncio.wait(self._beside)

    def _wake(self, pending: Pending) -> None:
        self._queue.append(pending)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)

    def _rest(self) -> None:
        self._busy = False
        if self._rested is not None and not self._rested.done():
            self._rested.set_result(None)

    def _begin(self) -> None:
        """Decide what waits and give it to the disk."""
        waiting, self._queue = self._queue, []
        batch: list[Pending] = []
        answered: list[Answer[Put] | Part] = []
        parts: list[Buffer] = []
        names: set[bytes] = set()
        active, now = self.active, self._now()
        number, owner, flushed, arrived = active.number, active.owner, active.end, int(now)
        size = 0
        room = self.free - self.reserve if active.end <= _OFFSET_MAX else 0
        for at, pending in enumerate(waiting):
            if pending.answer.done():  # cancelled
                continue
            if pending.key in names:  # its turn is when this one's is over
                self._queue.append(pending)
                continue
            if len(batch) == _BATCH or size >= _BATCH_BYTES:
                self._queue += waiting[at:]
                break
            try:
                if self.broken is not None:
                    self._check_writable()
                decision = self._decide(pending, now)
                if decision is None:
                    continue
                action, put = decision
                more = size + len(pending.data)
                if more > room and action is not Action.KEEP and not pending.essential:
                    self.check_room(more)
                if action is Action.KEEP:
                    pending.answer.succeed(put)
                    answered.append(pending.answer)
                    continue
                place = number, flushed + size
                pending.entry = entry = pending.made(action, put, place, arrived)
                kind: int = Kind.REMOVAL
                data, sums = pending.data, pending.sums
                if entry is not None:
                    kind = entry.kind
                    if entry.head == place:
                        kind, data = Kind.TOUCH, entry.touch()
                        sums = block_sums(data)
                head = encode_head(
                    kind,
                    pending.write.name.encode(),
                    b"" if entry is None else entry.metadata,
                    len(data),
                    put.stamp,
                    pending.checksum,
                    arrived=arrived if entry is None else entry.arrived,
                    owner=owner,
                    flushed=flushed,
                )
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                pending.answer.fail(_as_error(error))
                answered.append(pending.answer)
                continue
            pending.put = put
            parts += (head, data, sums) if data else (head,)
            size += len(head) + len(data) + len(sums)
            names.add(pending.key)
            batch.append(pending)
        if batch:
            self._batch = batch
            self._thread.submit(self._write, parts, size)
        elif self._queue:
            self._loop.call_soon(self._begin)
        else:
            self._rest()
        resume(answered)

    def _decide(self, pending: Pending, now: float) -> Decision | None:
        """Decide one write; None where the copy it would touch is being read first."""
        while True:
            current = pending.old = self._catalog.get(pending.key)
            if current is not None and pending.read.get(current.data) is False:
                current = current._replace(damaged=True)
            decision = pending.decide(current, self._clock, now)
            if decision.action is not Action.TOUCH or pending.alone is not None:
                return decision
            assert current is not None
            if current.data in pending.read:
                return decision
            sound = self._reader.sound(pending.write.name, current)
            if sound is None:
                self._start(self._read_first(pending, current))
                return None
            pending.read[current.data] = sound

    async def _read_first(self, pending: Pending, entry: Entry) -> None:
        try:
            wrong = await self._reader.verify(pending.write.name, entry)
        except DolmenError as error:
            pending.answer.fail(error)
            self._loop.call_soon(resume, [pending.answer])
        else:
            pending.read[entry.data] = wrong is None
            self._wake(pending)

    def _end(self, error: BaseException | None, size: int) -> None:
        """The disk is done with the batch: show its entries and answer."""
        batch, self._batch = self._batch, []
        if error is None:
            error = self._show(batch)
        if error is None:
            for pending in batch:
                assert pending.put is not None
                pending.answer.succeed(pending.put)
            self._unflushed_bytes += size
            self._unflushed_writes += len(batch)
            if self._unflushed_bytes >= _FLUSH_BYTES or self._unflushed_writes >= _FLUSH_WRITES:
                self._flush_index()
        else:
            if isinstance(error, Full):  # what a full disk takes is tried once more
                again = [each for each in batch if each.essential and not each.retried]
                for pending in batch:
                    pending.put = None  # it was not written
                    pending.retried = True
                self._queue[:0] = again
                batch = [each for each in batch if each not in again]
            elif isinstance(error, OSError):
                error = OutcomeUnknown(f"the volume could not be written: {error}")
            for pending in batch:
                pending.answer.fail(error)
        # The disk gets its next batch before the callers go on.
        if self._queue:
            self._begin()
        else:
            self._rest()
        resume([pending.answer for pending in batch])

    def _show(self, batch: list[Pending]) -> BaseException | None:
        change = Change()
        for pending in batch:
            change.put(pending.key, pending.write.name.encode(), pending.old, pending.entry)
        try:
            self._catalog.apply(change, (self.active.number, self.active.end))
        except BaseException as error:  # noqa: BLE001 - the callers must not wait for ever
            self.broken = f"its index failed ({error!r})"
            if isinstance(error, OSError):
                return OutcomeUnknown(f"the volume's index failed: {error}")
            return error
        if self._catalog.dead and not self._removing:
            self._removing = True
            self._start(self._remove_dead())
        return None

    async def _remove_dead(self) -> None:
        """Remove the files of large blobs that were replaced or deleted."""
        try:
            while numbers := sorted(self._catalog.dead):
                for number in numbers:
                    self._reader.close_file(number)
                await self._loop.run_in_executor(self._threads, self._folder.remove, numbers, BLOB)
                self._catalog.forget(numbers)
        except OSError as error:  # the next opening tries again
            _log.error("files of deleted blobs could not be removed: %s", error)
        finally:
            self._removing = False

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def _flush_index(self) -> None:
        if self._flushing:
            return
        self._flushing = True
        self._unflushed_bytes = self._unflushed_writes = 0

        def flush() -> None:
            try:
                self._catalog.index.flush()
            except OSError as error:  # only the next opening takes longer; applying finds out
                _log.error("the index could not be flushed: %s", error)
            finally:
                self._flushing = False

        self._threads.submit(flush)

    # The writing thread's part

    def _write(self, parts: list[Buffer], size: int) -> None:
        """Append a batch, durably, and say so to the event loop."""
        error: BaseException | None = None
        try:
            self._append(parts, size)
        except Full as full:
            self.free, error = 0, full
        except BaseException as failed:  # noqa: BLE001 - the callers must not wait for ever
            self.broken, error = f"a write or flush failed ({failed})", failed
            _log.error("the volume %s is read-only: %s", self._folder.path, self.broken)
        else:
            self._roll()
        self._loop.call_soon_threadsafe(self._end, error, size)

    def _append(self, parts: list[Buffer], size: int) -> None:
        try:
            self.active.append(parts, size)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self.active.cut_off()
            self._folder.release_reserve()
            raise self._full() from error
        self.free = self._folder.disk.space(self._folder.path)[0]
        if self.free < _SCARCE:
            self._folder.release_reserve()

    def _roll(self) -> None:
        """Begin the next segment if this one is large enough. The batch is on disk."""
        if self.active.end < self._segment_size:
            return
        old = self.active
        try:
            self.active = segment.create(self._folder, self._catalog.take_number())
        except BaseException as error:  # noqa: BLE001 - the batch is answered all the same
            # For want of room or descriptors the old one has to do until there are some.
            passing = *_NO_ROOM, errno.EMFILE, errno.ENFILE
            if not isinstance(error, OSError) or error.errno not in passing:
                self.broken = f"a new segment could not be made ({error!r})"
        else:
            self._folder.disk.close(old.fd)

    def _full(self) -> Full:
        return Full(
            f"the disk of {self._folder.path} is full: nothing was stored; delete something, or "
            "make room on the disk"
        )


def _as_error(error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        return Unavailable(f"the index of the volume can't be read: {error}")
    return error
