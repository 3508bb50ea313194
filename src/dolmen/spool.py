"""An unlinked temporary file, for bytes that there is no room for in memory."""

from __future__ import annotations

import os
import tempfile
import weakref

from dolmen.errors import Corrupt, Full


class Spool:
    """Bytes in a file without a name, in `folder` or where TMPDIR says. `size` is in bytes.

    Every call blocks; on an event loop use a thread. The descriptor is closed when nobody
    has the spool in hand any more, so never under a thread that goes on after its caller
    was cancelled. Raises `Full` when there is no room.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder or tempfile.gettempdir()
        try:
            self._fd, path = tempfile.mkstemp(dir=self._folder)
        except OSError as error:
            raise self._full(error) from error
        weakref.finalize(self, os.close, self._fd)
        os.unlink(path)
        self.size = 0

    def append(self, piece: bytes | bytearray | memoryview) -> None:
        """Write bytes to the end."""
        left = memoryview(piece)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise self._full(error) from error
        self.size += len(piece)

    def read(self, at: int, room: memoryview) -> memoryview:
        """Fill `room` with the bytes from `at` on, as far as they go; returns what was filled."""
        room = room[: self.size - at]
        got = 0
        while got < len(room):
            count = os.preadv(self._fd, (room[got:],), at + got)
            if not count:
                raise Corrupt("a temporary file was cut short")
            got += count
        return room

    def _full(self, error: OSError) -> Full:
        return Full(
            f"no room in {self._folder} for what can't be held in memory: {error.strerror}; "
            "make room there (TMPDIR says where an API server keeps it)"
        )
