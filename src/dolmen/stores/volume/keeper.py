"""The keeper: merges in the background, in a thread or in a process of its own.

A server has it in a process of its own (`dolmen.companion`). That one says an empty line
when its first pass went well, and what is wrong before it dies.
"""

from __future__ import annotations

import asyncio
import logging
import select
import sys
import threading
from contextlib import ExitStack
from typing import Protocol

from dolmen.companion import Companion, order, say
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


class ProcessKeeper(Companion):
    """Merges in a process of its own. On an event loop."""

    def __init__(self, path: str) -> None:
        super().__init__(__name__, path)


def main() -> None:
    """Merge the volume in the folder it is told until standard input ends."""
    try:
        _keep(order())
    except Exception as error:
        say(f"!{error!r}")
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
                say("")
