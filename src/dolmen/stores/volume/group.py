"""Group commit: writes from the event loop, committed together.

What arrives in one turn of the event loop, or while the disk is busy, is one batch;
there is no timer and no waiting for company. Deciding and showing happen on the
loop and only the disk is waited for in a thread, which does nothing else: two
threads that both run Python would hand the interpreter's lock to and fro at every
step (measured: docs/decisions/2026-11-23-commit-on-the-loop.md).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from dolmen.errors import OutcomeUnknown, Unavailable
from dolmen.store import Put
from dolmen.stores.volume.commit import Batch, Log
from dolmen.stores.volume.write import Write, settle

BATCH_MAX = 512
_LOOK_AGAIN = 0.001
"""Seconds between two looks at a name that another process is deciding about."""
_CLAIMANT_DIED = 200
"""Looks after which the claim's process may have died, and its segments are recovered."""


class Group:
    """Gathers writes and commits them. `batches` and `writes` count what it has done."""

    def __init__(self, log: Log, *, recover: Callable[[], object]) -> None:
        self._log = log
        self._recover = recover
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Write] = deque()
        self._scheduled = False
        self._looks = 0
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
        self._batches.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _begin(self) -> None:
        """Decide about the next batch and give it to the disk; one is under way at a time."""
        queue = self._queue
        writes = [queue.popleft() for _ in range(min(len(queue), BATCH_MAX))]
        batch, waiting = self._log.claim(writes)
        queue.extendleft(reversed(waiting))
        if batch.writes:
            self._looks = 0
            if len(batch.writes) + len(waiting) < len(writes):
                claimed = set(map(id, (*batch.writes, *waiting)))
                settle([write for write in writes if id(write) not in claimed])
            self._batches.put(batch)
            return
        if waiting:
            held = set(map(id, waiting))
            settle([write for write in writes if id(write) not in held])
            self._look_again()
            return
        settle(writes)
        self._next()

    def _look_again(self) -> None:
        """Every name is being decided about in another process: wait a moment."""
        self._looks += 1
        if self._looks % _CLAIMANT_DIED == 0:
            recovering = self._loop.run_in_executor(None, self._recover)
            recovering.add_done_callback(lambda _: self._begin())
        else:
            self._loop.call_later(_LOOK_AGAIN, self._begin)

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
