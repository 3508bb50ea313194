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

import errno
import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from concurrent.futures import Executor

from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.record import block_sums, encode_head
from dolmen.resolve import Action, Decision
from dolmen.stamps import Clock
from dolmen.store import Put
from dolmen.stores.volume import segment
from dolmen.stores.volume.answer import Answer, resume
from dolmen.stores.volume.catalog import Catalog, Change
from dolmen.stores.volume.disk import WRITE_MAX, Buffer
from dolmen.stores.volume.entry import Entry, Place
from dolmen.stores.volume.pending import Pending

_log = logging.getLogger("dolmen.volume")
_BATCH = WRITE_MAX // 3
"""Writes in a batch at most: each is up to three buffers."""
_BATCH_BYTES = 32 << 20
_FLUSH_BYTES, _FLUSH_WRITES = 256 << 20, 20_000
"""The index is flushed after so much, so that the next opening has little to scan."""
_OFFSET_MAX = (1 << 32) - (64 << 20)
_SCARCE = 8 << 20
"""With less room than this the reserve is released, before the index meets the end of it."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


Found = Callable[[bool | DolmenError], None]
Sound = Callable[[str, Entry, Found], bool | None]
"""Tells whether a copy can be read and is right: at once, or None and a call later."""


class Log:
    """The end of the log of one open volume. On the event loop, with one thread that writes."""

    def __init__(
        self,
        catalog: Catalog,
        active: segment.Active,
        *,
        loop: AbstractEventLoop,
        thread: Executor,
        threads: Executor,
        sound: Sound,
        clock: Clock,
        now: Callable[[], float],
        segment_size: int,
        freed: Callable[[], None],
    ) -> None:
        """`freed` is called when a blob's own file is referred to no more."""
        self._catalog, self.active = catalog, active
        self._folder = active.folder
        self._loop, self._thread, self._threads = loop, thread, threads
        self._sound, self._clock, self._now = sound, clock, now
        self._segment_size = segment_size
        self._queue: list[Pending] = []
        self._batch: list[Pending] = []
        self._busy = False
        self.free, total, _ = self._folder.disk.space(self._folder.path)
        self.reserve = segment_size + min(64 << 20, total // 32)
        """Puts leave so much of the disk free: for compaction, deletes and the index."""
        self.broken: str | None = None
        """Why it takes no more writes."""
        self._unflushed_bytes = self._unflushed_writes = 0
        self._flushing = False
        self._freed = freed
        self._checking = 0
        """Writes that wait until the copy they would touch was read."""
        self._closing: Answer[None] | None = None

    # The event loop's part

    def submit(self, pending: Pending) -> Answer[Put]:
        """Have a write decided and carried out; raises `ReadOnly`."""
        self._check_writable()
        pending.answer = Answer(self._loop)
        self._queue.append(pending)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)
        return pending.answer

    def writes_under_way(self, key: bytes) -> bool:
        """Whether the batch that is being written has a write of this name."""
        return any(pending.key == key for pending in self._batch)

    def _begin(self) -> None:
        """Decide what waits and give it to the disk."""
        waiting, self._queue = self._queue, []
        batch: list[Pending] = []
        answered: list[Answer[Put]] = []
        parts: list[Buffer] = []
        names: set[bytes] = set()
        active, now = self.active, self._now()
        arrived = int(now)
        number, owner, flushed = active.number, active.owner, active.end
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
                if more > room and not pending.essential and action is not Action.KEEP:
                    self.check_room(more)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                pending.answer.fail(_as_error(error))
                answered.append(pending.answer)
                continue
            if action is Action.KEEP:
                pending.answer.succeed(put)
                answered.append(pending.answer)
                continue
            kind, data = pending.settle(
                action is Action.TOUCH, put, (number, flushed + size), arrived
            )
            entry = pending.entry
            head = encode_head(
                kind,
                pending.encoded,
                b"" if entry is None else entry.metadata,
                len(data),
                put.stamp,
                pending.checksum,
                arrived=arrived if entry is None else entry.arrived,
                owner=owner,
                flushed=flushed,
            )
            sums = pending.sums if data is pending.data else block_sums(data)
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
        current = old = self._catalog.get(pending.key)
        while True:
            pending.old = old
            decision = pending.decide(current, self._clock, now)
            if decision.action is not Action.TOUCH or pending.alone is not None:
                return decision
            assert old is not None
            place, sound = old.data, pending.sound.get(old.data)
            if sound is None:

                def later(found: bool | DolmenError, place: Place = place) -> None:
                    self._found(pending, place, found)

                sound = self._sound(pending.write.name, old, later)
                if sound is None:
                    self._checking += 1
                    return None
            if sound:
                return decision
            old = self._catalog.get(pending.key)  # it was quarantined
            current = None if old is None else old._replace(damaged=True)

    def _found(self, pending: Pending, place: Place, found: bool | DolmenError) -> None:
        """A copy was read: its write can be decided."""
        self._checking -= 1
        if isinstance(found, DolmenError):
            pending.answer.fail(found)
            resume([pending.answer])
            self._settled()
            return
        pending.sound[place] = found
        self._queue.append(pending)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)

    def check_room(self, size: int) -> None:
        """Raise `Full` unless so many bytes more leave the reserve free."""
        if self.free - size < self.reserve:
            self.free = self._folder.disk.space(self._folder.path)[0]
        if self.free - size < self.reserve or self.active.end > _OFFSET_MAX:
            raise self._full()

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
            if (
                self._unflushed_bytes >= _FLUSH_BYTES or self._unflushed_writes >= _FLUSH_WRITES
            ) and not self._flushing:
                self._flush_index()
        elif isinstance(error, Full):
            self._retry(batch, error)
        else:
            if isinstance(error, OSError):
                error = OutcomeUnknown(f"the volume could not be written: {error}")
            for pending in batch:
                pending.answer.fail(error)
        # The disk gets its next batch before the callers go on.
        if self._queue:
            self._begin()
        else:
            self._rest()
        resume([pending.answer for pending in batch if pending.answer.done()])

    def _show(self, batch: list[Pending]) -> BaseException | None:
        change = Change()
        for pending in batch:
            change.put(pending.key, pending.encoded, pending.old, pending.entry)
            if pending.alone is not None:
                self._catalog.settle(pending.alone[0])
        try:
            self._catalog.apply(change, self.active.number, self.active.end)
        except BaseException as error:  # noqa: BLE001 - the callers must not wait for ever
            self.broken = f"its index failed ({error!r})"
            if isinstance(error, OSError):
                return OutcomeUnknown(f"the volume's index failed: {error}")
            return error
        if change.freed:
            self._freed()
        return None

    def _retry(self, batch: list[Pending], error: Full) -> None:
        """The disk is full: refuse the puts, and try once more what a full disk takes."""
        again = []
        for pending in batch:
            pending.put = None
            if pending.essential and not pending.retried:
                pending.retried = True
                again.append(pending)
            else:
                pending.answer.fail(error)
        self._queue[:0] = again

    def _rest(self) -> None:
        self._busy = False
        self._settled()

    def _settled(self) -> None:
        if self._closing is not None and not self._busy and not self._checking:
            self._closing.succeed(None)
            self._loop.call_soon(resume, [self._closing])

    async def close(self) -> None:
        """Return when everything submitted was answered."""
        self._closing = Answer(self._loop)
        self._settled()
        await self._closing

    def _flush_index(self) -> None:
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
            self.active.append(parts, size)
            self.free = self._folder.disk.space(self._folder.path)[0]
            if self.free < _SCARCE:
                self._folder.release_reserve()
        except OSError as failed:
            error = self._failed(failed)
        except BaseException as failed:  # noqa: BLE001 - the callers must not wait for ever
            self.broken = f"writing failed: {failed!r}"
            error = failed
        else:
            self._roll()
        self._loop.call_soon_threadsafe(self._end, error, size)

    def _failed(self, failed: OSError) -> Exception:
        if failed.errno in _NO_ROOM:
            try:
                self.active.cut_off()
                self._folder.release_reserve()
            except OSError as error:
                failed = error
            else:
                self.free = 0
                return self._full()
        self.broken = f"a write or flush failed ({failed})"
        _log.error("the volume %s is read-only: %s", self._folder.path, self.broken)
        return failed

    def _roll(self) -> None:
        """Begin the next segment if this one is large enough. The batch is on disk."""
        if self.active.end < self._segment_size:
            return
        old = self.active
        try:
            self.active = segment.create(self._folder, self._catalog.take_number())
        except BaseException as error:  # noqa: BLE001 - the batch is answered all the same
            # For want of room the old one has to do until there is some.
            if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
                self.broken = f"a new segment could not be made ({error!r})"
        else:
            self._folder.disk.close(old.fd)

    def _full(self) -> Full:
        return Full(
            f"the disk of {self._folder.path} is full: nothing was stored; delete something, or "
            "make room on the disk"
        )

    def _check_writable(self) -> None:
        if self.broken is not None:
            raise ReadOnly(
                f"the volume {self._folder.path} takes no writes because {self.broken}; check the "
                "disk and the system's log, then start the server again"
            )


def _as_error(error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        return Unavailable(f"the index of the volume can't be read: {error}")
    return error
