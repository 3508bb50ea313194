"""Checked reads: right bytes or `Corrupt`, without holding up the event loop.

A read first asks for what the page cache has (`preadv` with RWF_NOWAIT, Linux); only a
read that would wait for the disk goes to a thread. Every byte handed out has been compared
with its CRC-32C, in whole blocks of 64 KiB, and comes from a record with the name asked for
and the checksum the index has.

What the disk can't read (EIO), and a file that is gone, is damage: another copy comes in
its place only when this one counts as none. Any other refusal is `Unavailable`.

Read first: `dolmen.record`, `entry`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from blake3 import blake3

from dolmen.buffers import Buffers
from dolmen.errors import Corrupt, DolmenError, Unavailable
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX, id_hasher, is_chunk_name, is_object_id
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.record import (
    BLOCK,
    CHECKSUM_AT,
    HEAD_MAX,
    HEADER_SIZE,
    Kind,
    block_sums,
    data_in,
    decode_head,
    sums_size,
)
from dolmen.store import Range
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry
from dolmen.stores.volume.folder import BLOB, SEGMENT, Folder

T = TypeVar("T")
WHOLE = 262_144
"""Blobs up to this many bytes are read at once."""
_PIECE = 1 << 20
"""Larger ones are read in pieces of this many bytes; in smaller ones by many at once."""
_ROOM = 64 << 20
"""What the pieces on their way take together, unless there are hundreds of readers."""
_WINDOW = 1 << 20
_OPEN_MAX = 256


class File:
    """An open file. Its descriptor is closed when nobody has it in hand any more."""

    __slots__ = ("_disk", "fd")

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk, self.fd = disk, fd

    def __del__(self) -> None:
        self._disk.close(self.fd)


class Reader:
    """Reads what entries refer to. `damaged(name, entry)` is called for every damaged copy."""

    def __init__(
        self, folder: Folder, threads: Executor, damaged: Callable[[str, Entry], None]
    ) -> None:
        self._folder, self._disk, self._threads = folder, folder.disk, threads
        self._damaged = damaged
        self._files: dict[int, File] = {}
        self._buffers = Buffers(_PIECE, spare=16)
        self._streams = 0

    def file(self, entry: Entry) -> File:
        """The open file with the data; raises `FileNotFoundError` when it is gone."""
        number = entry.data[0]
        file = self._files.get(number)
        if file is None:
            path = self._folder.file(number, BLOB if entry.alone else SEGMENT)
            file = File(self._disk, self._disk.open(path))
            if len(self._files) >= _OPEN_MAX:
                del self._files[next(iter(self._files))]
            self._files[number] = file
        return file

    def close_file(self, number: int) -> None:
        """Let go of a file that is removed, so that its room is free."""
        self._files.pop(number, None)

    def close(self) -> None:
        """Let go of every file."""
        self._files.clear()

    # Whole small blobs

    def cached(self, name: bytes, entry: Entry) -> bytes | memoryview | None:
        """The data of a small blob, checked, if the page cache has it all."""
        number, offset = entry.data
        try:
            file = self._files.get(number) or self.file(entry)
            data = self._disk.read_record(
                file.fd, offset, name, entry.inner, entry.length, entry.checksum
            )
        except OSError as error:
            raise self.refused(name.decode(), entry, error) from error
        if data is False:
            raise self.corrupt(name.decode(), entry)
        return data

    async def read(self, name: str, entry: Entry, byte_range: Range | None) -> Payload:
        """The data or a range of it, however long that takes."""
        length, encoded = entry.length, name.encode()
        start, stop = 0, length
        if byte_range is not None:
            start = min(byte_range[0], length)
            stop = max(start, min(byte_range[1], length))
        try:
            file = self.file(entry)
            if (start, stop) == (0, length) and length <= WHOLE:
                record = await self._in_thread(
                    self._disk.read, file.fd, entry.record_size(encoded), entry.data[1]
                )
                data = data_in(record, encoded, entry.inner, entry.length, entry.checksum)
                if data is None:
                    raise self.corrupt(name, entry)
                return Bytes(data)
            head = memoryview(bytearray(HEADER_SIZE + len(encoded)))
            await self._fill(file, head, entry.data[1])
        except OSError as error:
            raise self.refused(name, entry, error) from error
        if not _is_of(head, encoded, entry):
            raise self.corrupt(name, entry)
        if stop - start > WHOLE:
            return self._stream(name, entry, file, start, stop)
        return Bytes(await self._blocks(name, entry, file, start, stop))

    # Ranges and large blobs

    def _stream(self, name: str, entry: Entry, file: File, start: int, stop: int) -> Payload:
        async def opened() -> AsyncIterator[Piece]:
            at = start
            self._streams += 1
            try:
                while at < stop:
                    share = max(WHOLE, min(_PIECE, _ROOM // self._streams))
                    # Pieces end at block borders, so no block is read twice.
                    end = min((at + share) // BLOCK * BLOCK, stop)
                    room = self._buffers.take()
                    yield await self._blocks(name, entry, file, at, end, room)
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
    ) -> memoryview:
        """The bytes of a range of at most a few blocks, checked in whole blocks."""
        first = start // BLOCK
        begin = first * BLOCK
        end = max(begin, min((stop + BLOCK - 1) // BLOCK * BLOCK, entry.length))
        size = end - begin
        data = memoryview(bytearray(size)) if room is None else room[:size]
        sums = memoryview(bytearray(sums_size(size)))
        offset = entry.data_at(name.encode())
        try:
            await self._fill(file, data, offset + begin)
            await self._fill(file, sums, offset + entry.length + 4 * first)
        except OSError as error:
            raise self.refused(name, entry, error) from error
        if block_sums(data) != sums:
            raise self.corrupt(name, entry)
        return data[start - begin : stop - begin]

    async def _fill(self, file: File, room: memoryview, offset: int) -> None:
        """Read into `room`; what lies behind the file's end is left as it is, and fails checks."""
        got = self._disk.read_cached(file.fd, room, offset)
        if got != len(room):
            # The call has the file in hand until it ends, even if nobody waits any more.
            await self._in_thread(_read_into, self._disk, file, room, offset)

    # Soundness

    def sound(
        self, name: str, entry: Entry, later: Callable[[bool | DolmenError], None]
    ) -> bool | None:
        """Whether a copy is right to its end, head included; None: `later` is called."""
        try:
            file = self.file(entry)
            if entry.length <= WHOLE:
                encoded = name.encode()
                record = bytearray(entry.record_size(encoded))
                got = self._disk.read_cached(file.fd, record, entry.data[1])
                if got == len(record):
                    if data_in(record, encoded, entry.inner, entry.length, entry.checksum) is None:
                        self._damaged(name, entry)
                        return False
                    return _head_is_sound(record, encoded, entry)
        except OSError as error:
            self._reraise(name, entry, error)
            return False
        task = asyncio.ensure_future(self._examine(name, entry, file))

        def done(task: asyncio.Future[str | None]) -> None:
            if task.cancelled():
                later(Unavailable("the volume was closed"))
                return
            error = task.exception()
            later(error if isinstance(error, DolmenError) else error is None and not task.result())

        task.add_done_callback(done)
        return None

    async def verify(self, name: str, entry: Entry) -> str | None:
        """Why a copy is not right to its end, content and head; None when it is.

        A copy of which only the head is damaged can still be read, so it is not quarantined.
        """
        try:
            file = self.file(entry)
        except OSError as error:
            self._reraise(name, entry, error)
            return str(self._message(name, entry))
        return await self._examine(name, entry, file, named=True)

    async def _examine(
        self, name: str, entry: Entry, file: File, *, named: bool = False
    ) -> str | None:
        try:
            data, head, content = await self._in_thread(
                _examine, self._disk, file, name, entry, named
            )
        except OSError as error:
            self._reraise(name, entry, error)
            data = False
        if not data:
            self._damaged(name, entry)
            return self._message(name, entry)
        if not content:
            return f"the content under {name} has another digest"
        if not head:
            return (
                f"the head of the record of {name} is damaged: it can still be read, but dolmen "
                "reindex would lose it; make sure that there is another copy"
            )
        return None

    # Refusals

    def corrupt(self, name: str, entry: Entry) -> Corrupt:
        """The error for a damaged copy, which is quarantined."""
        self._damaged(name, entry)
        return Corrupt(self._message(name, entry))

    def refused(self, name: str, entry: Entry, error: OSError) -> DolmenError:
        """What an error of the system says of a copy."""
        if isinstance(error, FileNotFoundError) or error.errno == errno.EIO:
            return self.corrupt(name, entry)
        return Unavailable(f"the copy of {name} can't be read: {error}")

    def _reraise(self, name: str, entry: Entry, error: OSError) -> None:
        refused = self.refused(name, entry, error)
        if not isinstance(refused, Corrupt):
            raise refused from error

    def _message(self, name: str, entry: Entry) -> str:
        number, offset = entry.data
        return (
            f"this copy of {name} is damaged (file {number:08x}, byte {offset}) and was "
            "quarantined; replication replaces it from another copy"
        )

    def _in_thread(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        try:
            return asyncio.get_running_loop().run_in_executor(
                self._threads, partial(call, *arguments)
            )
        except RuntimeError as error:  # the executor was shut down
            raise Unavailable("the volume is closed") from error


def _read_into(disk: Disk, file: File, room: memoryview, offset: int) -> int:
    return disk.read_into(file.fd, room, offset)


def _is_of(head: memoryview, name: bytes, entry: Entry) -> bool:
    """Whether this is the head of the record that the entry means."""
    checksum = head[CHECKSUM_AT : CHECKSUM_AT + CHECKSUM_SIZE]
    return head[HEADER_SIZE:] == name and checksum == entry.checksum


def _head_is_sound(record: bytes | bytearray, name: bytes, entry: Entry) -> bool:
    try:
        head = decode_head(memoryview(record))
    except Corrupt:
        return False
    fields = head.name, head.checksum, head.length, len(head.metadata)
    return fields == (name, entry.checksum, entry.length, entry.inner)


def read_now(disk: Disk, fd: int, name: bytes, entry: Entry) -> memoryview | None:
    """The data in the record of an entry, checked; None when it is damaged. In a thread."""
    try:
        record = disk.read(fd, entry.record_size(name), entry.data[1])
    except OSError as error:
        if error.errno == errno.EIO:
            return None
        raise
    return data_in(record, name, entry.inner, entry.length, entry.checksum)


def _examine(
    disk: Disk, file: File, name: str, entry: Entry, named: bool
) -> tuple[bool, bool, bool]:
    """Read a record to its end, in a thread.

    Returns whether its data fits its checksums, whether its head does, and (`named`) whether
    the data is what the name stands for, where it is a digest.
    """
    encoded = name.encode()
    head = disk.read(file.fd, min(HEAD_MAX, entry.record_size(encoded)), entry.data[1])
    if not _is_of(memoryview(head)[: HEADER_SIZE + len(encoded)], encoded, entry):
        return False, False, True
    offset, length = entry.data_at(encoded), entry.length
    checksum, digest = blake3(), None
    if named and entry.kind == Kind.BLOB and is_object_id(name):
        digest = id_hasher(name)
    room = memoryview(bytearray(min(_WINDOW, length)))
    for at in range(0, length, _WINDOW):
        data = room[: min(_WINDOW, length - at)]
        got = disk.read_into(file.fd, data, offset + at)
        sums = disk.read(file.fd, sums_size(len(data)), offset + length + at // BLOCK * 4)
        if got < len(data) or block_sums(data) != sums:
            return False, False, True
        checksum.update(data)
        if digest is not None:
            digest.update(data)
    if checksum.digest(CHECKSUM_SIZE) != entry.checksum:
        return False, False, True
    content = digest is None or digest.hexdigest() == name
    if named and is_chunk_name(name):
        content = name == CHUNK_PREFIX + checksum.hexdigest()
    return True, _head_is_sound(head, encoded, entry), content
