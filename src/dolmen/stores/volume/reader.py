"""Checked reads: right bytes or `Corrupt`, without holding up the event loop.

A read first asks for what the page cache has (`preadv` with RWF_NOWAIT, Linux); only a
read that would wait for the disk goes to a thread. Every byte handed out has been compared
with its CRC-32C, in whole blocks of 64 KiB, and comes from a record with the name asked for
and the checksum the index has.

What does not fit its checksum, what the disk can't read (EIO), and a file that is gone, is
damage, because replication only replaces a copy that is marked damaged. Any other refusal is
`Unavailable`.

Read first: `dolmen.record`, `entry`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
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
from dolmen.stores.volume.segment import checked_pieces, damage

T = TypeVar("T")
WHOLE = 262_144
"""Blobs up to this many bytes are read at once."""
_PIECE = 1 << 20
"""Larger ones are read in pieces of this many bytes; in smaller ones by many at once."""
_ROOM = 64 << 20
"""What the pieces on their way take together, unless there are hundreds of readers."""
_OPEN_MAX = 256
_CHECKSUM_END = CHECKSUM_AT + CHECKSUM_SIZE


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

    def cached(self, name: bytes, entry: Entry) -> bytes | memoryview | None:
        """The data of a small blob, checked, if the page cache has it all."""
        number, offset = entry.data
        try:
            file = self._files.get(number) or self.file(entry)
            data = self._disk.read_record(
                file.fd, offset, name, entry.inner, entry.length, entry.checksum
            )
            if data is False:
                raise damage()
        except OSError as error:
            raise self._refused(name.decode(), entry, error) from error
        return data

    async def fetch(self, cold: Sequence[tuple[str, Entry]]) -> None:
        """Bring small blobs into the page cache: the disk is asked for all of them at once.

        What can't be read is left to whoever reads it.
        """
        places = []
        for name, entry in cold:
            with suppress(OSError):
                places.append((self.file(entry), entry.data[1], entry.record_size(name.encode())))

        def read(_: int) -> None:
            for ask in self._disk.will_need, self._disk.read:
                for file, offset, size in places:
                    with suppress(OSError):
                        ask(file.fd, size, offset)

        if places:
            await self._in_thread(places[0][0], read)

    async def read(self, name: str, entry: Entry, byte_range: Range | None) -> Payload:
        """The data or a range of it, however long that takes."""
        length, encoded = entry.length, name.encode()
        start, stop = byte_range or (0, length)
        start = min(start, length)
        stop = max(start, min(stop, length))
        try:
            file = self.file(entry)
            if (start, stop) == (0, length) and length <= WHOLE:
                size = entry.record_size(encoded)
                record = await self._in_thread(file, self._disk.read, size, entry.data[1])
                return Bytes(_data_in(record, encoded, entry))
            head = memoryview(bytearray(HEADER_SIZE + len(encoded)))
            await self._fill(file, head, entry.data[1])
            _check_is_of(head, encoded, entry)
        except OSError as error:
            raise self._refused(name, entry, error) from error
        if stop - start > WHOLE:
            return self._stream(name, entry, file, start, stop)
        return Bytes(await self._blocks(name, entry, file, start, stop))

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
        size = max(0, min((stop + BLOCK - 1) // BLOCK * BLOCK, entry.length) - begin)
        data = memoryview(bytearray(size)) if room is None else room[:size]
        sums = memoryview(bytearray(sums_size(size)))
        offset = entry.data_at(name.encode())
        try:
            await self._fill(file, data, offset + begin)
            await self._fill(file, sums, offset + entry.length + 4 * first)
            if block_sums(data) != sums:
                raise damage()
        except OSError as error:
            raise self._refused(name, entry, error) from error
        return data[start - begin : stop - begin]

    async def _fill(self, file: File, room: memoryview, offset: int) -> None:
        """Read into `room`; what lies behind the file's end is left as it is, and fails checks."""
        got = self._disk.read_cached(file.fd, room, offset)
        if got != len(room):
            await self._in_thread(file, self._disk.read_into, room, offset)

    # Soundness

    def sound(self, name: str, entry: Entry) -> bool | None:
        """Whether a small copy in the page cache is right, head included; None: ask `verify`."""
        if entry.length > WHOLE:
            return None
        encoded = name.encode()
        record = bytearray(entry.record_size(encoded))
        try:
            if self._disk.read_cached(self.file(entry).fd, record, entry.data[1]) != len(record):
                return None
            _data_in(record, encoded, entry)
        except OSError as error:
            refused = self._refused(name, entry, error)
            if isinstance(refused, Corrupt):
                return False
            raise refused from error
        return _head_is_sound(memoryview(record), encoded, entry)

    async def verify(self, name: str, entry: Entry, *, named: bool = False) -> str | None:
        """Why a copy is not right to its end, head included; None when it is.

        `named`: where its name is a digest, that is compared as well. A copy of which only the
        head is damaged can still be read, so it is not quarantined.
        """
        try:
            examine = partial(_examine, self._disk)
            return await self._in_thread(self.file(entry), examine, name, entry, named)
        except OSError as error:
            refused = self._refused(name, entry, error)
            if isinstance(refused, Corrupt):
                return str(refused)
            raise refused from error

    def _refused(self, name: str, entry: Entry, error: OSError) -> DolmenError:
        """What an error says of a copy, which is quarantined if it is damaged."""
        if not isinstance(error, FileNotFoundError) and error.errno != errno.EIO:
            return Unavailable(f"the copy of {name} can't be read: {error}")
        self._damaged(name, entry)
        number, offset = entry.data
        return Corrupt(
            f"this copy of {name} is damaged (file {number:08x}, byte {offset}) and was "
            "quarantined; replication replaces it from another copy"
        )

    def _in_thread(self, file: File, call: Callable[..., T], *arguments: object) -> Awaitable[T]:
        """Call with a file's descriptor, in a thread that has the file in hand until it ends."""

        def run() -> T:
            return call(file.fd, *arguments)

        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, run)
        except RuntimeError as error:  # the executor was shut down
            raise Unavailable("the volume is closed") from error


def _examine(disk: Disk, fd: int, name: str, entry: Entry, named: bool) -> str | None:
    """What is wrong with a copy; raises `OSError` for one that can't be read to its end."""
    encoded = name.encode()
    head = disk.read(fd, min(HEAD_MAX, entry.record_size(encoded)), entry.data[1])
    _check_is_of(head, encoded, entry)
    checksum, digest = blake3(), None
    if named and entry.kind == Kind.BLOB and is_object_id(name):
        digest = id_hasher(name)
    for piece in checked_pieces(disk, fd, entry.data_at(encoded), entry.length):
        checksum.update(piece)
        if digest is not None:
            digest.update(piece)
    if checksum.digest(CHECKSUM_SIZE) != entry.checksum:
        raise damage()
    stands_for = name if digest is None else digest.hexdigest()
    if named and is_chunk_name(name):
        stands_for = CHUNK_PREFIX + checksum.hexdigest()
    if stands_for != name:
        return f"the content under {name} has another digest"
    if not _head_is_sound(head, encoded, entry):
        return (
            f"the head of the record of {name} is damaged: it can still be read, but dolmen "
            "reindex would lose it; make sure that there is another copy"
        )
    return None


def _data_in(record: bytearray | memoryview, name: bytes, entry: Entry) -> memoryview:
    """The data in a record; raises `OSError` where that is damaged or not what the entry means."""
    data = data_in(record, name, entry.inner, entry.length, entry.checksum)
    if data is False:
        raise damage()
    return data


def read_now(disk: Disk, fd: int, name: bytes, entry: Entry) -> memoryview | None:
    """The data in the record of an entry, checked; None when it is damaged. In a thread."""
    try:
        return _data_in(disk.read(fd, entry.record_size(name), entry.data[1]), name, entry)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _check_is_of(head: memoryview, name: bytes, entry: Entry) -> None:
    """Raise `OSError` unless this begins the record that the entry means."""
    named = head[HEADER_SIZE : HEADER_SIZE + len(name)] == name
    if not named or head[CHECKSUM_AT:_CHECKSUM_END] != entry.checksum:
        raise damage()


def _head_is_sound(record: memoryview, name: bytes, entry: Entry) -> bool:
    try:
        head = decode_head(record)
    except Corrupt:
        return False
    fields = head.name, head.checksum, head.length, len(head.metadata)
    return fields == (name, entry.checksum, entry.length, entry.inner)
