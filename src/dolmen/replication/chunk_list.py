"""Names of chunks, kept in a file in list order, and looked up there."""

from __future__ import annotations

from bisect import bisect_left

from dolmen.names import CHUNK_PREFIX, partition_of
from dolmen.spool import Spool

_DIGEST = 32


class ChunkList:
    """The names of chunks that went by: those in list order in a file, any others in memory."""

    def __init__(self) -> None:
        self._file = Spool()
        self._end = (-1, "")
        self._late: set[str] = set()

    def add(self, name: str) -> None:
        """Take in a chunk's name. Raises `Full`."""
        place = (partition_of(name), name)
        if place <= self._end:
            self._late.add(name)
        else:
            self._file.append(bytes.fromhex(name.removeprefix(CHUNK_PREFIX)))
            self._end = place

    def __contains__(self, name: str) -> bool:
        if name in self._late:
            return True
        count = self._file.size // _DIGEST
        place = (partition_of(name), name)
        at = bisect_left(range(count), place, key=self._place)
        return at < count and self._place(at) == place

    def _place(self, number: int) -> tuple[int, str]:
        digest = self._file.read(number * _DIGEST, memoryview(bytearray(_DIGEST)))
        name = CHUNK_PREFIX + digest.hex()
        return partition_of(name), name
