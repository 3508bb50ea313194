"""Group commit: writes from the event loop, committed together.

What arrives in one turn of the event loop, or while the disk is busy, is one batch;
there is no timer and no waiting for company. Deciding and showing happen on the
loop and only the disk is waited for in a thread, which does nothing else: two
threads that both run Python would hand the interpreter's lock to and fro at every
step (measured: docs/decisions/2026-11-23-commit-on-the-loop.md).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from dolmen.errors import OutcomeUnknown, Unavailable
from dolmen.store import Put
from dolmen.stores.volume.commit import Batch, Log
from dolmen.stores.volume.write import Write, settle

_log = logging.getLogger("dolmen.volume")
BATCH_MAX = 512
_BATCH_BYTES = 64 << 20
_LOOK_AGAIN = 0.001
"""Seconds between two looks at a name that another process is deciding about."""
_CLAIMANT_DIED = 200
"""Looks after which the claim's process may have died, and its segments are recovered."""


class Group:
    """Gathers writes and commits them. `batches` and `writes` count what it has done."""

    def __init__(self, log: Log, *, recover: Callable[[], object]) -> None:
        self._log = log
        self._recover = recover
        self._recovering: asyncio.Future[object] | None = None
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Write] = deque()
        self._scheduled = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dolmen-disk", daemon=True)
        self._thread.start()
        self.batches = 0
        self.writes = 0

    def submit(self, write: Write) -> asyncio.Future[Put]:
        """Queue a write; the future has its answer, or raises its error."""
        done = write.done = self._loop.create_future()
        if self._closed:
            done.set_exception(Unavailable("the volume is closed"))
            return done
        self._queue.append(write)
        if not self._scheduled:
            self._scheduled = True
            self._idle.clear()
            self._loop.call_soon(self._begin)
        return done

    async def close(self) -> None:
        """Commit what is queued, then end the thread."""
        self._closed = True
        await self._idle.wait()
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
        self._batches.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _begin(self) -> None:
        """Decide about the next batch and give it to the disk; one is under way at a time."""
        writes = self._take()
        batch, waiting = self._log.claim(writes)
        if len(batch.writes) + len(waiting) < len(writes):
            undecided = set(map(id, (*batch.writes, *waiting)))
            settle([write for write in writes if id(write) not in undecided])
        if waiting:
            self._queue.extendleft(reversed(waiting))
            if any(write.looks % _CLAIMANT_DIED == _CLAIMANT_DIED - 1 for write in waiting):
                self._recover_dead()
        if batch.writes:
            self._batches.put(batch)
        elif waiting:
            self._loop.call_later(_LOOK_AGAIN, self._begin)
        else:
            self._next()

    def _take(self) -> list[Write]:
        """The next writes, as many as one commit should carry, without those given up by now."""
        queue, size = self._queue, 0
        writes: list[Write] = []
        while queue and len(writes) < BATCH_MAX and size < _BATCH_BYTES:
            write = queue.popleft()
            if write.done is None or not write.done.done():
                writes.append(write)
                size += write.room
        return writes

    def _recover_dead(self) -> None:
        if self._recovering is None:
            self._recovering = self._loop.run_in_executor(None, self._recover)
            self._recovering.add_done_callback(self._recovered)

    def _recovered(self, recovering: asyncio.Future[object]) -> None:
        self._recovering = None
        if not recovering.cancelled() and (error := recovering.exception()) is not None:
            _log.error("what a dead process left could not be recovered: %r", error)

    def _finish(self, batch: Batch) -> None:
        """The batch is on disk, or failed: show it and answer."""
        self._log.show(batch)
        self.batches += 1
        self.writes += len(batch.writes)
        settle(batch.writes)
        self._next()

    def _next(self) -> None:
        if self._queue:
            self._loop.call_soon(self._begin)
        else:
            self._scheduled = False
            self._idle.set()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._log.log(batch)
            except BaseException as error:  # noqa: BLE001 - a caller must never be left waiting
                self._log.broken = f"a commit failed: {error!r}"
                for write in batch.writes:
                    write.error = OutcomeUnknown(f"the commit failed: {error!r}")
            self._loop.call_soon_threadsafe(self._finish, batch)
