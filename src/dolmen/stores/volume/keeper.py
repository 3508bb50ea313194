"""The keeper: merges in the background, in a thread or in a process of its own.

A server has it in a process of its own, because a merge is thousands of small steps
in Python, each of which would hold up the event loop for a moment. That process ends when
its standard input does, so it never outlives the one it works for.
"""

from __future__ import annotations

import asyncio
import logging
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.layout import prepare
from dolmen.stores.volume.merge import Merge
from dolmen.stores.volume.opening import Membership
from dolmen.stores.volume.recent import Recent

_log = logging.getLogger("dolmen.volume")
PAUSE = 0.5
"""Seconds between two merges."""


class Keeper(Protocol):
    """Something that merges until it is closed."""

    def close(self) -> None:
        """End it after the pass it is at. Blocks."""


class ThreadKeeper:
    """Merges in a thread. `failed` is told when a merge could not be carried out; it then ends."""

    def __init__(
        self, merge: Merge, recent: Recent, *, failed: Callable[[BaseException], None], pause: float
    ) -> None:
        self._merge, self._recent, self._failed, self._pause = merge, recent, failed, pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dolmen-merge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Keeper`."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                if self._recent.count():
                    self._merge.merge(wait=False)
            except BaseException as error:  # noqa: BLE001 - reported, and ends the thread
                self._failed(error)
                return


class ProcessKeeper:
    """Merges in a process of its own, which is started again should it die. On an event loop."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
            [sys.executable, "-c", f"from {__name__} import main; main()", self._path],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the server alone
        )
        self._timer = self._loop.call_later(1, self._look)

    def _look(self) -> None:
        if self._closed:
            return
        status = self._process.poll()
        if status is None:
            self._timer = self._loop.call_later(1, self._look)
            return
        _log.error("the keeper of %s ended with status %d; another starts", self._path, status)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._start()

    def close(self) -> None:
        """See `Keeper`."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._timer.cancel)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Merge the volume in the folder named by the first argument until standard input ends."""
    path = sys.argv[1]
    disk = Disk()
    layout = prepare(disk, path)
    membership = Membership(disk, layout)
    with ExitStack() as leaving:
        leaving.callback(membership.leave)
        membership.join()
        merge = Merge(disk, layout, membership.index, membership.recent)
        leaving.callback(merge.close)
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            if membership.recent.count():
                merge.merge(wait=False)
