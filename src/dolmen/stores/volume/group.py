"""Group commit: writes from the event loop, committed together by one thread.

While the disk is busy with one batch the next one gathers. There is no timer and
no waiting for company: a lone write is committed at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from dolmen.errors import OutcomeUnknown, Unavailable
from dolmen.store import Put
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.write import Write, settle

_log = logging.getLogger("dolmen.volume")
_CLAIMED_ELSEWHERE = 0.001
"""Seconds between two looks at a name that another process is deciding about."""
_CLAIMANT_DIED = 200
"""Looks after which the claim's process may have died, and its segments are recovered."""
BATCH_MAX = 512


class Group:
    """Owns the thread that commits. `batches` and `writes` count what it has done."""

    def __init__(
        self, log: Log, *, recover: Callable[[], object], after: Callable[[], None]
    ) -> None:
        self._log = log
        self._recover = recover
        self._after = after
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self.batches = 0
        self.writes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dolmen-commit", daemon=True)
        self._thread.start()

    def submit(self, write: Write) -> asyncio.Future[Put]:
        """Queue a write; the future has its answer, or raises its error."""
        write.done = self._loop.create_future()
        if self._closed:
            write.done.set_exception(Unavailable("the volume is closed"))
        else:
            self._queue.put(write)
        return write.done

    async def close(self) -> None:
        """Commit what is queued, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        waiting: list[Write] = []
        looks = 0
        closing = False
        while not (closing and not waiting):
            batch, closing = self._gather(waiting, closing)
            if not batch:
                continue
            try:
                waiting = self._log.commit(batch)
            except BaseException as error:  # noqa: BLE001 - a waiter must never hang
                _log.exception("a commit failed in a way nobody foresaw")
                self._log.broken = f"a commit failed: {error!r}"
                for write in batch:
                    write.error = OutcomeUnknown(f"a commit failed: {error!r}")
                waiting = []
            answered = [write for write in batch if write not in waiting] if waiting else batch
            self.batches += 1
            self.writes += len(answered)
            if answered:
                self._loop.call_soon_threadsafe(settle, answered)
                looks = 0
            else:
                looks += 1
                if looks % _CLAIMANT_DIED == 0:
                    self._recover()
            self._after()

    def _gather(self, waiting: list[Write], closing: bool) -> tuple[list[Write], bool]:
        batch = waiting
        queue = self._queue
        try:
            # With writes waiting for another process, look again soon; else wait for one.
            first = queue.get(timeout=_CLAIMED_ELSEWHERE) if waiting or closing else queue.get()
            while True:
                if first is None:
                    closing = True
                else:
                    batch.append(first)
                if len(batch) >= BATCH_MAX:
                    break
                first = queue.get_nowait()
        except Empty:
            pass
        return batch, closing
