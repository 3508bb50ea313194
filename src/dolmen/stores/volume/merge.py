"""The merge: entries move from recent to the durable index, and segments are sealed.

A pass takes everything that was visible when it began, in slices of sorted
entries, each slice one transaction on the index. Only the last transaction of a
pass moves the watermarks, to where the segments reached when the pass began: by
then every entry below is in the index, or a newer one of its name is. One process
of a volume merges at a time (`merge.lock`).

A segment that is finished and reflected to its end moves from `active/` to
`sealed/`, once that state of the index is certain to survive a power cut.
"""

from __future__ import annotations

import threading

from dolmen.errors import Unavailable
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.layout import Layout, doubt
from dolmen.stores.volume.recent import Reach, Recent

SLICE = 2048
DROP = 256


class Merge:
    """Merges for one process. `merge` blocks; one thread at a time."""

    def __init__(self, disk: Disk, layout: Layout, index: Index, recent: Recent) -> None:
        self._disk, self._layout, self._index, self._recent = disk, layout, index, recent
        self._lock = disk.open_lock(layout.lock("merge"))
        self._mutex = threading.Lock()

    def close(self) -> None:
        """Let go of the lock's file."""
        self._disk.close(self._lock)

    def merge(self, *, wait: bool = True) -> bool:
        """One whole pass; False when another process is at it and `wait` is not asked.

        Raises `Unavailable` once a flush of the index has failed.
        """
        with self._mutex:
            if self._index.doubtful():
                raise Unavailable(doubt(self._layout))
            if not self._disk.lock(self._lock, wait=wait):
                return False
            try:
                self._pass()
            finally:
                self._disk.unlock(self._lock)
        return True

    def _pass(self) -> None:
        reached, sequence = self._recent.state()
        start = b""
        while True:
            entries = self._recent.page(start, SLICE)
            last = len(entries) < SLICE
            moved = last and self._moved(reached)
            if entries or moved:
                with self._index.slice() as change:
                    change.apply(entries)
                    if last:
                        for number, reach in reached.items():
                            change.mark(number, reach.settled)
                        if all(reach.settled == reach.end for reach in reached.values()):
                            change.forget_removals(before=sequence)
                # In small steps: whoever commits waits while one of them is made.
                for first in range(0, len(entries), DROP):
                    self._recent.drop(entries[first : first + DROP])
            if last:
                break
            start = entries[-1][0] + b"\0"
        self._seal([number for number, reach in reached.items() if reach.finished])

    def _moved(self, reached: dict[int, Reach]) -> bool:
        return any(
            self._index.watermark(number) != reach.settled for number, reach in reached.items()
        )

    def _seal(self, numbers: list[int]) -> None:
        if not numbers:
            return
        self._index.settle()
        folders = {self._layout.sealed_folder(number) for number in numbers}
        for folder in folders:
            self._disk.make_directory(folder)
        for number in numbers:
            active = self._layout.active_segment(number)
            if self._disk.exists(active):  # else a process died after it had moved it
                self._disk.rename(active, self._layout.sealed_segment(number))
        for folder in folders:
            self._disk.flush_directory(folder)
        self._disk.flush_directory(self._layout.active)
        for number in numbers:
            self._recent.forget_segment(number)
