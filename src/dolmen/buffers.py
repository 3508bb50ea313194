"""Buffers that are used again.

The first touch of fresh memory costs many times what filling it costs, so whoever
moves large data takes buffers here. None is given back by hand: one counts as free when
nobody holds it or a view of it any more (no thread, socket or caller), which CPython's
count of references tells. What is not kept for later goes back to the system.
"""

from __future__ import annotations

import mmap
import sys
import threading
from collections import deque

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_probe = [object()]
_ALONE = sys.getrefcount(_probe[0])
"""What `getrefcount(list[i])` says of an object that only the list holds."""


class Buffers:
    """Buffers of `size` bytes, of which up to `spare` are kept for later. For any thread."""

    def __init__(self, size: int, *, spare: int) -> None:
        self.size = size
        self._kept: deque[mmap.mmap] = deque(maxlen=spare)
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """A buffer with anything in it; memory is only used for as much of it as is written."""
        with self._lock:
            kept = self._kept
            for at in range(len(kept)):
                if sys.getrefcount(kept[at]) == _ALONE:
                    return memoryview(kept[at])
            kept.append(mmap.mmap(-1, self.size, flags=_PRIVATE))  # in place of the oldest
            return memoryview(kept[-1])
