"""The sweep: what nobody refers to any more goes, a day after it was overruled or abandoned."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from dolmen.errors import DolmenError
from dolmen.names import PARTITIONS
from dolmen.stores.objects.bucket import Bucket
from dolmen.stores.objects.head import Head, heads_of
from dolmen.stores.objects.parts import GRACE
from dolmen.stores.objects.walk import walk

_SPAN = 256
"""Partitions whose heads are held in memory at a time."""
_FIRST, _NEXT = 60, 3600
"""Seconds after which it looks whether a sweep is due."""
_TIMED = re.compile(r"/(?:at\.)?([0-9a-f]{8})[^/]*$")
_STAGED = re.compile(r"#[0-9]+$")


class Sweeper:
    """Sweeps once a day, in whichever process comes first. `folder` is the bucket if it is one.

    `now` returns seconds since 1970. `trouble` is a sentence while it does not work.
    """

    def __init__(self, bucket: Bucket, folder: Path | None, now: Callable[[], float]) -> None:
        self._bucket, self._folder, self._now = bucket, folder, now
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""

    def start(self) -> None:
        """Begin, until `aclose`."""
        self._task = asyncio.create_task(self._for_ever())

    async def aclose(self) -> None:
        """Leave off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _for_ever(self) -> None:
        await asyncio.sleep(_FIRST)
        while True:
            try:
                await self.sweep_if_due()
                self.trouble = ""
            except DolmenError as error:
                self.trouble = f"what nobody needs any more could not be swept: {error}"
            await asyncio.sleep(_NEXT)

    async def sweep_if_due(self) -> None:
        """Sweep, unless somebody did within a day."""
        now = self._now()
        times = await self._bucket.all("sweeps")
        if any(now - _time_in(path) < GRACE for path in times):
            return
        claim = f"sweeps/{int(now):08x}"
        await self._bucket.put(claim, b"")
        await self._bucket.delete(times)
        try:
            await sweep(self._bucket, now)
        except DolmenError:
            await self._bucket.delete([claim])
            raise
        if self._folder is not None:
            await asyncio.to_thread(_sweep_staged, self._folder)


async def sweep(bucket: Bucket, now: float) -> None:
    """Delete what was overruled or abandoned a day before `now` (seconds since 1970)."""
    for first in range(0, PARTITIONS, _SPAN):
        span = range(first, first + _SPAN)
        used: set[str | None] = set()
        gone: list[str] = []
        # Heads before parts: see the package on what is being written.
        async for _, paths in walk(bucket, "heads", span):
            for heads in heads_of(paths).values():
                overruled = _overruled(heads, now)
                gone += [head.path for head in overruled]
                used |= {head.data for head in heads[len(overruled) :]}
            marked = {path[:-1] for path in paths if path.endswith("!")}
            gone += [f"{path}!" for path in marked.difference(paths)]
        async for _, paths in walk(bucket, "data", span):
            parts: defaultdict[str, list[str]] = defaultdict(list)
            for path in paths:
                parts[path.rpartition("/")[0]].append(path)
            for folder, its in parts.items():
                newest = max(_time_in(path) for path in (folder, *its))
                if folder not in used and now - newest >= GRACE:
                    gone += its
        await bucket.delete(gone)


def _overruled(heads: list[Head], now: float) -> list[Head]:
    """Those of the heads of a name, lowest first, that were overruled a day ago or before."""
    count = 0
    for number, head in enumerate(heads):
        if now - head.arrived >= GRACE:
            count = number
    return heads[:count]


def _time_in(path: str) -> int:
    """The second that a path tells, 0 for none."""
    found = _TIMED.search(path)
    return int(found[1], 16) if found else 0


def _sweep_staged(folder: Path) -> None:
    """Delete files that were begun a day ago or before and never got their name.

    The driver writes to `NAME#NUMBER` and renames; its listings do not show such.
    """
    for path in _staged(folder):
        try:
            if time.time() - os.stat(path).st_mtime >= GRACE:
                os.unlink(path)
        except FileNotFoundError:
            pass  # it got its name after all


def _staged(folder: Path) -> Iterator[str]:
    for within, _, names in os.walk(folder):
        yield from (os.path.join(within, name) for name in names if _STAGED.search(name))
