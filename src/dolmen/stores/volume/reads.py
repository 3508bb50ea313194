"""Checked reads from segments: right bytes or `Corrupt`, without holding up the event loop.

A read first asks for what the page cache has (`preadv` with RWF_NOWAIT, Linux);
only a read that would wait for the disk goes to a thread. Every byte handed out
has been compared with its CRC-32C, in whole blocks of 64 KiB; small records are
read with their head, whose name must be the one asked for.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from crc32c import crc32c

from dolmen.errors import Corrupt
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.record import BLOCK, HEADER_SIZE, block_sums, sums_size
from dolmen.store import Range
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.layout import Layout

WHOLE = 262_144
"""Blobs up to this many bytes are read at once; larger ones in pieces of this size."""
_OPEN_MAX = 256


class Files:
    """Descriptors of segments, the ones used last kept open. For the event loop's thread."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk, self._layout = disk, layout
        self._open: OrderedDict[int, File] = OrderedDict()

    def get(self, number: int) -> File:
        """The open segment; raises `FileNotFoundError` when it is gone."""
        file = self._open.get(number)
        if file is None:
            file = self._open[number] = File(self._disk, self._opened(number))
            if len(self._open) > _OPEN_MAX:
                self._open.popitem(last=False)[1].release()
        else:
            self._open.move_to_end(number)
        return file

    def _opened(self, number: int) -> int:
        try:
            return self._disk.open(self._layout.active_segment(number))
        except FileNotFoundError:  # it may have been sealed
            return self._disk.open(self._layout.sealed_segment(number))

    def close(self) -> None:
        """Close every file, as soon as nobody reads it."""
        while self._open:
            self._open.popitem()[1].release()


class File:
    """A descriptor that is closed when its last user lets go."""

    __slots__ = ("_disk", "_users", "fd")

    def __init__(self, disk: Disk, fd: int) -> None:
        self.fd = fd
        self._disk = disk
        self._users = 1

    def hold(self) -> None:
        """Keep it open."""
        self._users += 1

    def release(self) -> None:
        """Let go."""
        self._users -= 1
        if not self._users:
            self._disk.close(self.fd)


class Reader:
    """Reads the data of entries. `failed(name, entry)` is told of every copy that is damaged."""

    def __init__(
        self,
        disk: Disk,
        files: Files,
        executor: Executor,
        failed: Callable[[str, Entry], None],
    ) -> None:
        self._disk, self._files, self._executor, self._failed = disk, files, executor, failed

    def cached(self, name: bytes, entry: Entry) -> bytes | bytearray | None:
        """The data of a small blob if the page cache has it all, checked; else None.

        Raises `FileNotFoundError` when the segment is gone.
        """
        file = self._files.get(entry.segment)
        record = self._disk.read_cached(file.fd, entry.record_size(name), entry.offset)
        return None if record is None else self._checked(name, entry, record)

    async def read(self, name: str, entry: Entry, byte_range: Range | None) -> Payload:
        """The data, or a range of it; raises `FileNotFoundError` when the segment is gone."""
        file = self._files.get(entry.segment)
        length = entry.length
        if byte_range is not None:
            start = min(byte_range[0], length)
            stop = max(start, min(byte_range[1], length))
            if (start, stop) != (0, length):
                return await self._range(name, entry, file, start, stop)
        if length > WHOLE:
            return self._stream(name, entry, file, 0, length)
        encoded = name.encode()
        record = await self._read(file, entry.record_size(encoded), entry.offset)
        return Bytes(self._checked(encoded, entry, record))

    def _checked(self, name: bytes, entry: Entry, record: bytes | bytearray) -> bytes | bytearray:
        """The data in a whole record, compared with its name and its checksums."""
        start = HEADER_SIZE + len(name) + entry.inner
        end = start + entry.length
        data = record[start:end]
        sums = record[end:]
        if record[HEADER_SIZE : HEADER_SIZE + len(name)] == name:
            if entry.length <= BLOCK:
                if not data or crc32c(data) == int.from_bytes(sums, "little"):
                    return data
            elif block_sums(data) == sums:
                return data
        raise self._damaged(name.decode(), entry)

    async def _range(self, name: str, entry: Entry, file: File, start: int, stop: int) -> Payload:
        if stop - start > WHOLE:
            return self._stream(name, entry, file, start, stop)
        return Bytes(await self._blocks(name, entry, file, start, stop))

    def _stream(self, name: str, entry: Entry, file: File, start: int, stop: int) -> Payload:
        async def opened() -> AsyncIterator[Piece]:
            file.hold()
            try:
                at = start
                while at < stop:
                    # Pieces end at block borders, so no block is read twice.
                    end = min(at - at % BLOCK + WHOLE, stop)
                    yield await self._blocks(name, entry, file, at, end)
                    at = end
            finally:
                file.release()

        return Stream(stop - start, opened)

    async def _blocks(self, name: str, entry: Entry, file: File, start: int, stop: int) -> Piece:
        """The bytes of a range of at most a few blocks, checked in whole blocks."""
        if start == stop:
            return b""
        data_offset = entry.data_offset(name.encode())
        first = start // BLOCK
        begin = first * BLOCK
        end = min((stop + BLOCK - 1) // BLOCK * BLOCK, entry.length)
        data = await self._read(file, end - begin, data_offset + begin)
        sums = await self._read(
            file, sums_size(end - begin), data_offset + entry.length + 4 * first
        )
        if len(data) < end - begin or block_sums(data) != sums:
            raise self._damaged(name, entry)
        if (begin, end) == (start, stop):
            return data
        return memoryview(data)[start - begin : stop - begin]

    async def _read(self, file: File, length: int, offset: int) -> bytes | bytearray:
        cached = self._disk.read_cached(file.fd, length, offset)
        return cached if cached is not None else await self._waiting(file, length, offset)

    async def _waiting(self, file: File, length: int, offset: int) -> bytes:
        """Read in a thread; the file stays open until that is done, even if nobody waits."""
        file.hold()
        reading = asyncio.get_running_loop().run_in_executor(
            self._executor, self._disk.read, file.fd, length, offset
        )
        reading.add_done_callback(lambda _: file.release())
        return await reading

    def _damaged(self, name: str, entry: Entry) -> Corrupt:
        self._failed(name, entry)
        return Corrupt(
            f"this copy of {name} is damaged (segment {entry.segment:08x}, byte {entry.offset}) "
            "and was quarantined; replication brings it back from another copy"
        )
