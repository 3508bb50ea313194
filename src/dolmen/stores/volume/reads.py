"""Checked reads from segments: right bytes or `Corrupt`, without holding up the event loop.

A read first asks for what the page cache has (`preadv` with RWF_NOWAIT, Linux);
only a read that would wait for the disk goes to a thread. Every byte handed out
has been compared with its CRC-32C, in whole blocks of 64 KiB, and comes from a record
with the name asked for and the checksum the index has.
"""

from __future__ import annotations

import contextlib
import errno
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

from crc32c import crc32c

from dolmen.buffers import Buffers
from dolmen.errors import Corrupt, Unavailable
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.record import BLOCK, CHECKSUM_AT, HEADER_SIZE, block_sums, decode_head, sums_size
from dolmen.store import Range
from dolmen.stores.volume.disk import Disk, Room
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.upload import InThread

WHOLE = 262_144
"""Blobs up to this many bytes are read at once."""
_PIECE = 1 << 20
"""Larger ones are read in pieces of this many bytes; in smaller ones by many at once."""
_ROOM = 64 << 20
"""What the pieces on their way take together, unless there are hundreds of readers and more."""
_OPEN_MAX = 256
_RESIDUE = 0x48674BC7
"""The CRC-32C of anything followed by its own CRC-32C, little-endian."""


class File:
    """An open segment. Its descriptor is closed when nobody has the file in hand any more."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, disk: Disk, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, disk.close, fd)


class Files:
    """Open segments, the ones opened last. For the event loop's thread."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk, self._layout = disk, layout
        self._open: dict[int, File] = {}

    def get(self, number: int) -> File:
        """The open segment; raises `FileNotFoundError` when it is gone."""
        file = self._open.get(number)
        if file is None:
            file = File(self._disk, self._opened(number))
            if len(self._open) >= _OPEN_MAX:
                del self._open[next(iter(self._open))]
            self._open[number] = file
        return file

    def _opened(self, number: int) -> int:
        try:
            return self._disk.open(self._layout.active_segment(number))
        except FileNotFoundError:  # it may have been sealed
            return self._disk.open(self._layout.sealed_segment(number))

    def take_gone(self) -> list[File]:
        """The files that were unlinked. Until they are closed they keep their room on the disk."""
        gone = [number for number, file in self._open.items() if not self._disk.linked(file.fd)]
        return [self._open.pop(number) for number in gone]

    def close(self) -> None:
        """Close every file, as soon as nobody reads it."""
        self._open.clear()


class Reader:
    """Reads the data of entries. `failed(name, entry)` is told of every copy that is damaged.

    What the disk can't read (EIO) is damaged: the system has tried often enough, and another
    copy comes in its place only when this one counts as none. Any other refusal is `Unavailable`.
    """

    def __init__(
        self,
        disk: Disk,
        files: Files,
        in_thread: InThread,
        failed: Callable[[str, Entry], None],
    ) -> None:
        self._disk, self._files, self._in_thread, self._failed = disk, files, in_thread, failed
        self._buffers = Buffers(_PIECE, spare=16)
        self._streams = 0

    def cached(self, name: bytes, entry: Entry) -> memoryview | None:
        """The data of a small blob if the page cache has it all, checked; else None.

        Raises `FileNotFoundError` when the segment is gone.
        """
        size = entry.record_size(name)
        try:
            file = self._files.get(entry.segment)
            record = self._disk.read_cached(file.fd, bytearray(size), entry.offset)
        except OSError as error:
            raise self._refused(name.decode(), entry, error) from error
        return None if record is None else self._checked(name, entry, record, size)

    async def read_many(
        self, wanted: Sequence[tuple[str, Entry]]
    ) -> dict[str, tuple[memoryview, bytes]]:
        """Data and block checksums of small blobs, as far as they can be read and are sound."""
        records: dict[str, bytes | bytearray] = {}
        absent: list[tuple[str, File, int, int]] = []
        for name, entry in sorted(wanted, key=_place):
            size = entry.record_size(name.encode())
            try:
                file = self._files.get(entry.segment)
                cached = self._disk.read_cached(file.fd, bytearray(size), entry.offset)
            except OSError:
                continue  # who reads it by itself finds out what it is
            if cached is None:
                absent.append((name, file, size, entry.offset))
            else:
                records[name] = cached
        if absent:
            records.update(await self._in_thread(_read_all, self._disk, absent))
        found: dict[str, tuple[memoryview, bytes]] = {}
        for name, entry in wanted:
            encoded, record = name.encode(), records.get(name)
            if record is not None:
                with contextlib.suppress(Corrupt):  # as above; and it is quarantined
                    data = self._checked(encoded, entry, record, entry.record_size(encoded))
                    end = entry.data_start(encoded) + entry.length
                    found[name] = data, bytes(record[end:])
        return found

    async def read(self, name: str, entry: Entry, byte_range: Range | None) -> Payload:
        """The data, or a range of it; raises `FileNotFoundError` when the segment is gone."""
        try:
            file = self._files.get(entry.segment)
        except OSError as error:
            raise self._refused(name, entry, error) from error
        length = entry.length
        if byte_range is not None:
            start = min(byte_range[0], length)
            stop = max(start, min(byte_range[1], length))
            if (start, stop) != (0, length):
                return await self._range(name, entry, file, start, stop)
        if length > WHOLE:
            return await self._range(name, entry, file, 0, length)
        encoded = name.encode()
        size = entry.record_size(encoded)
        record = await self._read(name, entry, file, bytearray(size), entry.offset)
        return Bytes(self._checked(encoded, entry, record, size))

    async def head_is_sound(self, name: str, entry: Entry) -> bool:
        """Whether the whole head of a record is, of which reading compares only a part.

        Raises `FileNotFoundError` when the segment is gone.
        """
        encoded = name.encode()
        try:
            file = self._files.get(entry.segment)
        except OSError as error:
            raise self._refused(name, entry, error) from error
        room = bytearray(entry.data_start(encoded))
        try:
            head = decode_head(bytes(await self._read(name, entry, file, room, entry.offset)))
        except Corrupt:
            return False
        fields = head.name, head.checksum, head.length, len(head.metadata)
        return fields == (encoded, entry.checksum, entry.length, entry.inner)

    def _checked(
        self, name: bytes, entry: Entry, record: bytes | bytearray, size: int
    ) -> memoryview:
        """The data in a record of `size` bytes, compared with its name and its checksums."""
        length = entry.length
        start = HEADER_SIZE + len(name) + entry.inner
        end = start + length
        view = memoryview(record)
        if len(record) == size and _is_of(record, name, entry):
            if 0 < length <= BLOCK:
                if crc32c(view[start:]) == _RESIDUE:
                    return view[start:end]
            elif block_sums(view[start:end]) == view[end:]:
                return view[start:end]
        raise self._damaged(name.decode(), entry)

    async def _range(self, name: str, entry: Entry, file: File, start: int, stop: int) -> Payload:
        encoded = name.encode()
        head = await self._read(
            name, entry, file, bytearray(HEADER_SIZE + len(encoded)), entry.offset
        )
        if not _is_of(head, encoded, entry):
            raise self._damaged(name, entry)
        if stop - start > WHOLE:
            return self._stream(name, entry, file, start, stop)
        return Bytes(memoryview(await self._blocks(name, entry, file, start, stop)))

    def _stream(self, name: str, entry: Entry, file: File, start: int, stop: int) -> Payload:
        async def opened() -> AsyncIterator[Piece]:
            at = start
            self._streams += 1
            try:
                while at < stop:
                    share = max(WHOLE, min(_PIECE, _ROOM // self._streams))
                    # Pieces end at block borders, so no block is read twice.
                    end = min((at + share) // BLOCK * BLOCK, stop)
                    yield await self._blocks(name, entry, file, at, end, self._buffers.take())
                    at = end
            finally:
                self._streams -= 1

        return Stream(stop - start, opened)

    async def _blocks(
        self,
        name: str,
        entry: Entry,
        file: File,
        start: int,
        stop: int,
        room: memoryview | None = None,
    ) -> Piece:
        """The bytes of a range of at most a few blocks, checked in whole blocks."""
        if start == stop:
            return b""
        data_offset = entry.offset + entry.data_start(name.encode())
        first = start // BLOCK
        begin = first * BLOCK
        end = min((stop + BLOCK - 1) // BLOCK * BLOCK, entry.length)
        size = end - begin
        room = memoryview(bytearray(size)) if room is None else room[:size]
        data = await self._read(name, entry, file, room, data_offset + begin)
        at = data_offset + entry.length + 4 * first
        sums = await self._read(name, entry, file, bytearray(sums_size(size)), at)
        if len(data) < size or block_sums(data) != sums:
            raise self._damaged(name, entry)
        if (begin, end) == (start, stop):
            return data
        return memoryview(data)[start - begin : stop - begin]

    async def _read(
        self, name: str, entry: Entry, file: File, room: Room, offset: int
    ) -> Room | bytes:
        """What lies there: in `room`, or when it had to come from the disk, elsewhere."""
        try:
            cached = self._disk.read_cached(file.fd, room, offset)
            if cached is not None:
                return cached
            # The call has the file in hand until it ends, even if nobody waits for it any more.
            length = len(room)
            found: bytes = await self._in_thread(_read_file, self._disk, file, length, offset)
        except OSError as error:
            raise self._refused(name, entry, error) from error
        return found

    def _damaged(self, name: str, entry: Entry) -> Corrupt:
        self._failed(name, entry)
        return Corrupt(
            f"this copy of {name} is damaged (segment {entry.segment:08x}, byte {entry.offset}) "
            "and was quarantined; replication brings it back from another copy"
        )

    def _refused(self, name: str, entry: Entry, error: OSError) -> Exception:
        if isinstance(error, FileNotFoundError):
            return error
        if error.errno == errno.EIO:
            return self._damaged(name, entry)
        return Unavailable(
            f"segment {entry.segment:08x} can't be read at byte {entry.offset}: {error}"
        )


def _read_file(disk: Disk, file: File, length: int, offset: int) -> bytes:
    return disk.read(file.fd, length, offset)


def _read_all(disk: Disk, wanted: Sequence[tuple[str, File, int, int]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, file, size, offset in wanted:
        with contextlib.suppress(OSError):
            found[name] = disk.read(file.fd, size, offset)
    return found


def _place(wanted: tuple[str, Entry]) -> tuple[int, int]:
    entry = wanted[1]
    return entry.segment, entry.offset


def _is_of(head: bytes | bytearray, name: bytes, entry: Entry) -> bool:
    """Whether this is the head of the record that the entry means."""
    return head.startswith(name, HEADER_SIZE) and head.startswith(entry.checksum, CHECKSUM_AT)
