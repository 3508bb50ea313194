"""The folder of a volume: what lies in it, who owns it, and the notes.

    dolmen-volume                 the format's version and the volume's identity; made last, so
                                  a folder that has it is whole
    lock                          held (`flock`) by the process that has the volume open; says
                                  which one that is
    notes                         small facts about the store, replaced as a whole
    reserve                       room kept for the moment at which the disk is full
    index/                        RocksDB: where every blob lies; can be rebuilt (`reindex`)
    segments/NNNNN/NNNNNNNN.seg   segments: records, one after the other
    segments/NNNNN/NNNNNNNN.blob  a blob over 4 MiB, in a file of its own
    segments/NNNNN/NNNNNNNN.part  such a file, or a segment, that is not complete

Files are numbered upwards (hex), 4,096 to a folder; a number is never used again.

The lock alone decides who may open the volume, and goes with its process, whatever host,
boot, container or user comes next.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crc32c import crc32c

from dolmen.errors import BadVolume
from dolmen.stores.volume.disk import Disk

FORMAT = 1
SEGMENT, BLOB, PART = ".seg", ".blob", ".part"
_RESERVE = 16 << 20
_TRANSIENT = {"lock", "segments", "index", "dolmen-volume.part"}
"""What a creation that was broken off may have left."""


class Folder:
    """Paths and small files of one volume."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.disk = disk
        self.path = os.path.abspath(path)
        self.index = self._in("index")
        self.old_index = self._in("index.old")
        self.segments = self._in("segments")
        self.marker = self._in("dolmen-volume")
        self.lock_path = self._in("lock")
        self.reserve_path = self._in("reserve")
        self.notes_path = self._in("notes")
        self.identity = ""
        """32 hex digits, chosen when the volume was made."""

    def _in(self, name: str) -> str:
        return os.path.join(self.path, name)

    # Segments

    def file(self, number: int, suffix: str) -> str:
        """The path of a numbered file."""
        return os.path.join(self.group(number), f"{number:08x}{suffix}")

    def group(self, number: int) -> str:
        """The folder that a numbered file belongs to."""
        return os.path.join(self.segments, f"{number >> 12:05x}")

    def make_group(self, number: int) -> None:
        """Make the folder that a numbered file belongs to, durably."""
        if not self.disk.exists(self.group(number)):
            self.disk.make_directory(self.group(number))

    def flush_group(self, number: int) -> None:
        """Return when the names of the files around a number are on disk as they are now."""
        self.disk.flush_directory(self.group(number))

    def remove(self, numbers: list[int], suffix: str) -> None:
        """Remove numbered files, durably."""
        for number in numbers:
            self.disk.unlink(self.file(number, suffix))
        for first in {number >> 12: number for number in numbers}.values():
            if self.disk.exists(self.group(first)):
                self.flush_group(first)

    def numbers(self, start: int = 0) -> Iterator[tuple[int, str]]:
        """Numbers from `start` on, ascending, with the suffix of their files."""
        for group in self.disk.names(self.segments):
            first = _number(group, 5)
            if first is None or first < start >> 12:
                continue
            for name in self.disk.names(os.path.join(self.segments, group)):
                stem, suffix = os.path.splitext(name)
                number = _number(stem, 8)
                if number is not None and number >= start and suffix in (SEGMENT, BLOB, PART):
                    yield number, suffix

    # Making and recognising

    def prepare(self, *, read_only: bool) -> None:
        """Check the volume, or make a new one. The lock is held.

        Raises `BadVolume` for a folder that holds something else or is of a newer format.
        """
        if not self.disk.exists(self.marker):
            if read_only:
                raise BadVolume(f"there is no volume in {self.path}: check the path")
            self._make()
        text = self._read(self.marker).decode("ascii", "replace")
        first, _, rest = text.partition("\n")
        words = first.split()
        if words[:2] != ["dolmen", "volume"] or len(words) != 3 or not words[2].isdigit():
            raise BadVolume(f"{self.marker} is not the mark of a volume: it holds {text[:40]!r}")
        if int(words[2]) > FORMAT:
            raise BadVolume(
                f"{self.path} is a volume of format {words[2]}; this dolmen reads formats up to "
                f"{FORMAT}: use the newer dolmen that wrote it"
            )
        identity, _, check = rest.strip().partition(" ")
        if check != _check(identity.encode()):
            raise BadVolume(
                f"{self.marker} is damaged: it holds {text[:80]!r}; restore its second line, the "
                "volume's identity, from a backup of that file"
            )
        self.identity = identity

    def check_foreign(self) -> None:
        """Raise `BadVolume` where a new volume would be made in a folder with other content."""
        if self.disk.exists(self.path) and not self.disk.exists(self.marker):
            foreign = [name for name in self.disk.names(self.path) if name not in _TRANSIENT]
            if foreign:
                raise BadVolume(
                    f"{self.path} is not a volume and not empty (it holds {foreign[0]!r}); nothing "
                    "was changed: choose an empty or a new folder"
                )

    def _make(self) -> None:
        self.disk.make_directory(self.segments)
        identity = secrets.token_hex(16)
        line = f"{identity} {_check(identity.encode())}\n"
        self._replace(self.marker, f"dolmen volume {FORMAT}\n{line}".encode())

    # The owner

    def take_lock(self, *, read_only: bool) -> int | None:
        """Take the lock; None where a read-only volume has no file to lock.

        Raises `BadVolume` when another process has the volume open.
        """
        try:
            fd = self.disk.lock(self.lock_path, shared=read_only)
        except OSError as error:
            if read_only and error.errno in (errno.ENOENT, errno.EROFS, errno.EACCES):
                return None
            raise
        if fd is None:
            with suppress(OSError):  # who it is only helps
                owner = self._read(self.lock_path).decode("utf-8", "replace").strip()
                raise BadVolume(
                    f"{self.path} is open in another process ({owner or 'unknown'}): stop it "
                    "first, or ask that server by its URL"
                )
            raise BadVolume(f"{self.path} is open in another process: stop it first")
        return fd

    def name_owner(self, lock: int, owner: str) -> None:
        """Say in the lock's file who has the volume open, for those who find it locked."""
        text = owner.encode() + b"\n"
        with suppress(OSError):  # on a full disk: it only helps people
            self.disk.truncate(lock, 0)
            self.disk.write(lock, [text], 0)

    # Notes

    def read_notes(self) -> dict[str, bytes]:
        """The facts noted; raises `BadVolume` when they are damaged."""
        if not self.disk.exists(self.notes_path):
            return {}
        content = self._read(self.notes_path)
        check, _, text = content.partition(b"\n")
        if check.decode("ascii", "replace") != _check(text):
            raise BadVolume(
                f"{self.notes_path} is damaged: put back a copy, or remove it. What a cluster and "
                "the last scrub noted in this volume is lost then"
            )
        return {key: bytes.fromhex(value) for key, value in json.loads(text).items()}

    def write_notes(self, notes: dict[str, bytes]) -> None:
        """Replace them all, durably."""
        text = json.dumps({key: value.hex() for key, value in notes.items()}).encode()
        self._replace(self.notes_path, _check(text).encode() + b"\n" + text)

    # Room for a full disk

    def keep_reserve(self) -> None:
        """Take the reserve, where the disk has plenty of room and it is not there."""
        free, total, read_only = self.disk.space(self.path)
        size = min(_RESERVE, total // 64)
        if read_only or free < 4 * size or self.disk.exists(self.reserve_path):
            return
        part = self.reserve_path + PART
        self.disk.unlink(part)
        fd = self.disk.create(part)
        try:
            self.disk.allocate(fd, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EOPNOTSUPP, errno.EINVAL, errno.EDQUOT):
                raise
            self.disk.unlink(part)
            return
        finally:
            self.disk.close(fd)
        self.disk.rename(part, self.reserve_path)

    def release_reserve(self) -> None:
        """Give the reserve back to the disk: it is full."""
        self.disk.unlink(self.reserve_path)

    def _read(self, path: str) -> bytes:
        fd = self.disk.open(path)
        try:
            return self.disk.read(fd, self.disk.size(fd), 0)
        finally:
            self.disk.close(fd)

    def _replace(self, path: str, content: bytes) -> None:
        """Put a small file there, durably: after any crash it is as before, or whole."""
        part = path + PART
        self.disk.unlink(part)
        fd = self.disk.create(part)
        try:
            self.disk.write(fd, [content], 0)
            self.disk.flush(fd)
        finally:
            self.disk.close(fd)
        self.disk.rename(part, path)
        self.disk.flush_directory(self.path)


@contextmanager
def usable(path: str) -> Iterator[None]:
    """Say of whatever the system or the index refuses that the folder can't be used."""
    try:
        yield
    except OSError as error:
        raise BadVolume(
            f"{path} can't be used as a volume: {error}; it takes a folder on a local disk that "
            "works and has room, which the user dolmen runs as may read and write. If the index "
            f"is damaged, `dolmen reindex {path}` rebuilds it"
        ) from error


def _number(text: str, digits: int) -> int | None:
    """A number in so many hex digits; None for the name of something else."""
    try:
        return int(text, 16) if len(text) == digits else None
    except ValueError:
        return None


def _check(content: bytes) -> str:
    return f"{crc32c(content):08x}"
