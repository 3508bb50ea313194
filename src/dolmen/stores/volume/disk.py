"""The one seam between a volume and the disk.

Every open, write, flush, rename, truncate, lock and unlink of a volume goes through `Disk`,
so that a simulated disk (`dolmen.testing.crash`) can stand under it and lose what was not
flushed. The index's files are RocksDB's own affair; it is opened here. All calls block; on
an event loop use a thread, except for `read_cached`, `read_record`, `space` and `identity`.

Errors of the operating system come through as `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

from dolmen.native import accelerated
from dolmen.record import data_in, record_size
from dolmen.stores.volume.index import Index, RocksIndex

Buffer = bytes | bytearray | memoryview
_DSYNC = getattr(os, "RWF_DSYNC", 0)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
WRITE_MAX = 1024
"""How many buffers one `write` takes at most (IOV_MAX)."""


@accelerated
def read_record(
    fd: int, offset: int, name: bytes, inner: int, length: int, checksum: bytes
) -> bytes | memoryview | Literal[False] | None:
    """The data of a record of at most 256 KiB, read at once; False when it fails its check.

    None when the disk would have to be waited for, or has less. `inner` is the length of its
    metadata. Raises `OSError`.
    """
    record = bytearray(record_size(len(name), inner, length))
    if read_cached(fd, record, offset) != len(record):
        return None
    return data_in(record, name, inner, length, checksum)


def read_cached(fd: int, room: bytearray | memoryview, offset: int) -> int | None:
    """Read into `room` without waiting for the disk; None where it would have to wait.

    Some file systems (tmpfs) know no such read; there the answer is None too.
    """
    try:
        return os.preadv(fd, (room,), offset, _NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise


class Disk:
    """The real disk: files by path, open files by descriptor."""

    def create(self, path: str) -> int:
        """Create a file that must not exist yet, open for reading and writing."""
        return os.open(path, _CREATE | os.O_EXCL, 0o640)

    def open(self, path: str, *, write: bool = False) -> int:
        """Open a file that exists."""
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a descriptor; locks taken by it are released."""
        os.close(fd)

    @contextmanager
    def opened(self, path: str, *, write: bool = False) -> Iterator[int]:
        """Open a file that exists, for a while."""
        fd = self.open(path, write=write)
        try:
            yield fd
        finally:
            self.close(fd)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        """Write up to `WRITE_MAX` buffers one after the other at `offset`.

        `sync`: return when these bytes, and the file's size, are on disk. One system call
        does both where there is RWF_DSYNC (Linux), so a thread waits once.
        """
        wanted = sum(map(len, buffers))
        written = os.pwritev(fd, buffers, offset, _DSYNC if sync else 0)
        if written < wanted:  # a signal, or the disk filled up: the next call says which
            rest = memoryview(b"".join(buffers))
            while written < wanted:
                written += os.pwrite(fd, rest[written:], offset + written)
            if sync:
                self.flush(fd)
        elif sync and not _DSYNC:
            self.flush(fd)

    def flush(self, fd: int) -> None:
        """Return when everything written to the file, and its size, is on disk."""
        os.fdatasync(fd)

    def flush_directory(self, path: str) -> None:
        """Return when every creation, rename and unlink in a directory is on disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write_behind(self, fd: int, offset: int, length: int) -> None:
        """Have the kernel begin to write these bytes out, so that a later flush is short.

        A hint (Linux `sync_file_range`) that promises nothing; its failure is none.
        """
        _LIBC.sync_file_range(
            fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE
        )

    def forget(self, fd: int) -> None:
        """Drop the file's clean pages from the cache, so that reads ask the disk itself.

        After a failed flush the kernel takes pages for clean that never reached the disk.
        """
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def will_need(self, fd: int, length: int, offset: int) -> None:
        """Have the kernel begin to read these bytes into its cache. A hint, like `write_behind`."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def allocate(self, fd: int, size: int) -> None:
        """Take room on the disk for a file of this size; raises ENOSPC when there is none."""
        os.posix_fallocate(fd, 0, size)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file off at `size` bytes."""
        os.ftruncate(fd, size)

    def identity(self, file: str | int) -> tuple[int, int] | None:
        """What file a path or a descriptor leads to (device, inode); None where it is gone."""
        try:
            found = os.stat(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def size(self, file: str | int) -> int:
        """The length in bytes of the file at a path or behind a descriptor."""
        return os.stat(file).st_size

    def read(self, fd: int, length: int, offset: int) -> memoryview:
        """Up to `length` bytes; fewer only at the file's end."""
        room = memoryview(bytearray(length))
        return room[: self.read_into(fd, room, offset)]

    def read_into(self, fd: int, room: memoryview, offset: int) -> int:
        """The same into `room`; returns how many bytes there were."""
        got = 0
        while got < len(room):
            more = os.preadv(fd, (room[got:],), offset + got)
            if not more:
                break
            got += more
        return got

    read_cached = staticmethod(read_cached)
    read_record = staticmethod(read_record)

    def lock(self, path: str, *, shared: bool) -> int | None:
        """Open a file and take its `flock`; None when somebody else has it.

        Not a POSIX lock: that one would vanish when any reader of the process closes the
        file. A shared lock needs no right to write.
        """
        fd = self.open(path) if shared else os.open(path, _CREATE, 0o640)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in place of what had it."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file's name, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def make_directory(self, path: str) -> None:
        """Make a directory, durably, if it is not there."""
        with suppress(FileExistsError):  # whoever made it may have died before it was flushed
            os.mkdir(path, 0o750)
        self.flush_directory(os.path.dirname(path) or ".")

    def names(self, path: str) -> list[str]:
        """What lies in a directory, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        """Whether something has this name."""
        return os.path.lexists(path)

    def space(self, path: str) -> tuple[int, int, bool]:
        """Bytes free and bytes in all of the file system at `path`; whether it is read-only."""
        found = os.statvfs(path)
        size = found.f_frsize
        return found.f_bavail * size, found.f_blocks * size, bool(found.f_flag & os.ST_RDONLY)

    def open_index(self, path: str, *, read_only: bool) -> Index:
        """Open the index in a folder, making it where it is not there."""
        return RocksIndex(path, read_only=read_only)

    def remove_index(self, path: str) -> None:
        """Remove an index's folder and the files in it, if it is there."""
        if os.path.isdir(path):
            shutil.rmtree(path)
