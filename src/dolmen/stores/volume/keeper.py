"""The keeper: merges in the background, in a thread or in a process of its own.

A server has it in a process of its own, because a merge is thousands of small steps
in Python, each of which would hold up the event loop for a moment. That process ends when
its standard input does, so it never outlives the one it works for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
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
    """Something that merges until it is closed, however often it fails meanwhile."""

    failing: str | None
    """Why it failed the last time, None when all was well."""

    async def close(self) -> None:
        """End it after the pass it is at."""


class ThreadKeeper:
    """Merges in a thread."""

    def __init__(self, merge: Merge, recent: Recent, *, pause: float) -> None:
        self._merge, self._recent, self._pause = merge, recent, pause
        self.failing: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dolmen-merge", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """See `Keeper`."""
        self._stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                # Segments that could not be sealed wait without any entry.
                if (self.failing or self._recent.count()) and self._merge.merge(wait=False):
                    self.failing = None
            except Exception as error:  # noqa: BLE001 - told in the volume's condition
                if self.failing is None:
                    _log.exception("a merge failed; it is tried again")
                self.failing = repr(error)


class ProcessKeeper:
    """Merges in a process of its own, which is started again should it die. On an event loop.

    It says a line on its standard output when its first pass went well, an empty one, and
    what is wrong before it dies.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.failing: str | None = None
        self._loop = asyncio.get_running_loop()
        self._process = self._started()
        self._timer = self._loop.call_later(1, self._look)

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
            [sys.executable, "-c", f"from {__name__} import main; main()", self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is for the server alone
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def _look(self) -> None:
        status = self._process.poll()
        assert self._process.stdout is not None
        if said := self._process.stdout.read():
            self.failing = said.decode("utf-8", "replace").splitlines()[-1] or None
        if status is not None:
            self.failing = self.failing or f"it ended with status {status}"
            _log.error("the keeper of %s died: %s; another starts", self._path, self.failing)
            try:
                died, self._process = self._process, self._started()
            except OSError as error:
                self.failing = f"it can't be started: {error}"
            else:
                _end(died)
        self._timer = self._loop.call_later(1, self._look)

    async def close(self) -> None:
        """See `Keeper`."""
        self._timer.cancel()
        await self._loop.run_in_executor(None, _end, self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that ends with its standard input."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def main() -> None:
    """Merge the volume in the folder named by the first argument until standard input ends."""
    try:
        _keep(sys.argv[1])
    except Exception as error:
        _say(repr(error))
        raise


def _keep(path: str) -> None:
    disk = Disk()
    layout = prepare(disk, path)
    membership = Membership(disk, layout)
    with ExitStack() as leaving:
        leaving.callback(membership.leave)
        membership.join()
        merge = Merge(disk, layout, membership.index, membership.recent)
        leaving.callback(merge.close)
        well = False
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            if well:
                if membership.recent.count():
                    merge.merge(wait=False)
            elif merge.merge(wait=False):
                well = True
                _say("")


def _say(line: str) -> None:
    with suppress(BrokenPipeError):  # nobody is left to hear it
        os.write(sys.stdout.fileno(), line.encode() + b"\n")
