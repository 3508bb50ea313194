"""The one seam between a volume and the disk.

Every open, write, flush, rename, truncate, lock and unlink of a volume goes
through `Disk`, so that a simulated disk (`dolmen.testing.crash`) can stand under
it and drop what was not flushed. Nothing else in the volume touches files. All
calls block; callers on an event loop use a thread, except for `read_cached`.

Errors of the operating system come through as `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import lmdb

Buffer = bytes | bytearray | memoryview
Room = TypeVar("Room", bytearray, memoryview)
_IOV_MAX = 1024
_DSYNC = getattr(os, "RWF_DSYNC", 0)
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Disk:
    """The real disk: files by path, open files by descriptor."""

    def create(self, path: str) -> int:
        """Create a file that must not exist yet, open for reading and writing."""
        return os.open(path, _CREATE_FLAGS | os.O_EXCL, 0o640)

    def open(self, path: str, *, write: bool = False) -> int:
        """Open a file that exists."""
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def open_lock(self, path: str) -> int:
        """Open a file that is only there to be locked, creating it if need be."""
        return os.open(path, _CREATE_FLAGS, 0o640)

    def close(self, fd: int) -> None:
        """Close a descriptor; locks taken by it are let go."""
        os.close(fd)

    def write(
        self, fd: int, buffers: Sequence[Buffer], offset: int, *, through: bool = False
    ) -> int:
        """Write all buffers one after the other at `offset`; returns how many bytes.

        `through`: return when these bytes (no others), and the file's size, are on disk.
        One call of the system does both, where it can (Linux, RWF_DSYNC), so that a
        thread that waits for the disk wakes but once.
        """
        total = 0
        for first in range(0, len(buffers), _IOV_MAX):
            part = buffers[first : first + _IOV_MAX]
            wanted = sum(map(len, part))
            written = os.pwritev(fd, part, offset + total, _DSYNC if through else 0)
            while written < wanted:  # a signal, or the disk filled up: the next call says which
                rest = memoryview(b"".join(part))[written:]
                written += os.pwrite(fd, rest, offset + total + written)
                if through:
                    self.flush(fd)
            total += wanted
        if through and not _DSYNC:
            self.flush(fd)
        return total

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

    def reserve(self, fd: int, offset: int, length: int) -> None:
        """Make room for bytes to come; raises ENOSPC when there is none."""
        try:
            os.posix_fallocate(fd, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def write_behind(self, fd: int, offset: int, length: int) -> None:
        """Have the kernel begin to write these bytes out, so that a later flush is short.

        A hint (Linux `sync_file_range`) that promises nothing; its failure is none.
        """
        _LIBC.sync_file_range(
            fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE
        )

    def forget(self, fd: int, offset: int) -> None:
        """Drop the file's clean cached pages from `offset` on, so reads ask the disk itself.

        After a failed flush the kernel counts pages as clean that never reached
        the disk; whoever recovers a file must not believe them.
        """
        os.posix_fadvise(fd, offset, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file off at `size` bytes."""
        os.ftruncate(fd, size)

    def linked(self, fd: int) -> bool:
        """Whether the open file still has a name."""
        return os.fstat(fd).st_nlink > 0

    def modified(self, fd: int) -> int:
        """The second since 1970 in which the file was last written."""
        return int(os.fstat(fd).st_mtime)

    def size(self, fd: int) -> int:
        """The file's length in bytes."""
        return os.fstat(fd).st_size

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the file's end."""
        data = os.pread(fd, length, offset)
        while len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_cached(self, fd: int, room: Room, offset: int) -> Room | None:
        """The same into `room`, without ever waiting for the disk: None where it would have to.

        Some file systems (tmpfs) know no such read; there the answer is None too.
        """
        try:
            got = os.preadv(fd, (room,), offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS):
                return None
            raise
        return room if got == len(room) else None

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        """Take the file's lock (`flock`); False when somebody else has it.

        Not a POSIX lock: that one would vanish when any reader of the process
        closes the file.
        """
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self, fd: int) -> None:
        """Let the file's lock go."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in place of what bore it."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        """Make a directory, durably, if it is not there."""
        with suppress(FileExistsError):  # whoever made it may have died before it was flushed
            self.add_directory(path)
        self.flush_directory(os.path.dirname(path) or ".")

    def add_directory(self, path: str) -> None:
        """Make a directory that must not be there."""
        os.mkdir(path, 0o750)

    def remove_folder(self, path: str) -> None:
        """Remove an index's folder and the files in it, if it is there."""
        if os.path.isdir(path):
            for name in os.listdir(path):
                os.unlink(os.path.join(path, name))
            os.rmdir(path)

    def names(self, path: str) -> list[str]:
        """What lies in a directory, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        """Whether something bears this name."""
        return os.path.exists(path)

    def space(self, path: str) -> tuple[int, int]:
        """Bytes free for this process and bytes in all, of the file system at `path`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def open_index(self, path: str, *, durable: bool) -> lmdb.Environment:
        """Open an LMDB environment.

        A durable one flushes its pages in every commit, and its root with the
        next one: a power cut may undo the last commit but leaves it consistent.
        """
        env = lmdb.open(
            path,
            map_size=(1 << 40) if durable else (1 << 36),  # sparse: only what is used takes room
            max_dbs=8,
            max_readers=512,
            max_spare_txns=8,
            metasync=False,
            sync=durable,
            readahead=False,
            mode=0o640,
        )
        try:
            if durable:  # LMDB does not flush the names of its files
                self.flush_directory(path)
        except BaseException:
            env.close()
            raise
        return env

    def settle_index(self, env: lmdb.Environment) -> None:
        """Return when every commit so far survives a power cut, the last one's root included."""
        env.sync(True)
