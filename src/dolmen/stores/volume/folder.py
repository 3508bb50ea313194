"""The folder of a volume: what lies in it, who owns it, and the notes.

`docs/disk-format.md` names every file. `dolmen-volume` is made last, so a folder that has it is
whole. Numbered files lie in `segments/`; a number is never used again.

The lock alone decides who may open the volume, and goes with its process, whatever host,
boot, container or user comes next.

Read first: `disk`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from crc32c import crc32c

from dolmen.errors import BadVolume
from dolmen.stores.volume.disk import Disk

FORMAT = 1
SEGMENT, BLOB, PART = ".seg", ".blob", ".part"
_NUMBERED = re.compile(r"([0-9a-f]{8})(\.seg|\.blob|\.part)")
_RESERVE = 16 << 20
_TRANSIENT = {"lock", "segments", "index", "dolmen-volume.part"}
"""What a creation that was broken off may have left."""


class Folder:
    """Paths and small files of one volume."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.disk = disk
        self.path = os.path.abspath(path)
        inside = partial(os.path.join, self.path)
        self.index, self.old_index = inside("index"), inside("index.old")
        self.segments, self.marker = inside("segments"), inside("dolmen-volume")
        self.lock, self.reserve, self.notes = inside("lock"), inside("reserve"), inside("notes")
        self.identity = ""
        """32 hex digits, chosen when the volume was made."""

    # Segments

    def file(self, number: int, suffix: str) -> str:
        """The path of a numbered file."""
        return os.path.join(self.segments, f"{number:08x}{suffix}")

    def numbers(self) -> Iterator[tuple[int, str]]:
        """The numbers of all files, ascending, with their suffixes."""
        for name in self.disk.names(self.segments):
            if found := _NUMBERED.fullmatch(name):
                yield int(found[1], 16), found[2]

    def remove(self, numbers: Collection[int], suffix: str) -> None:
        """Remove numbered files, durably."""
        for number in numbers:
            self.disk.unlink(self.file(number, suffix))
        if numbers:
            self.disk.flush_directory(self.segments)

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
            fd = self.disk.lock(self.lock, shared=read_only)
        except OSError as error:
            if read_only and error.errno in (errno.ENOENT, errno.EROFS, errno.EACCES):
                return None
            raise
        if fd is None:
            with suppress(OSError):  # who it is only helps
                owner = self._read(self.lock).decode("utf-8", "replace").strip()
                raise BadVolume(
                    f"{self.path} is open in another process ({owner or 'unknown'}): stop it "
                    "first, or ask that server by its URL"
                )
            raise BadVolume(f"{self.path} is open in another process: stop it first")
        return fd

    def name_owner(self, lock: int, owner: str) -> None:
        """Say in the lock's file who has the volume open, for those who find it locked."""
        with suppress(OSError):  # on a full disk: it only helps people
            self.disk.truncate(lock, 0)
            self.disk.write(lock, [owner.encode() + b"\n"], 0)

    # Notes

    def read_notes(self) -> dict[str, bytes]:
        """The facts noted; raises `BadVolume` when they are damaged."""
        if not self.disk.exists(self.notes):
            return {}
        content = self._read(self.notes)
        check, _, text = content.partition(b"\n")
        if check.decode("ascii", "replace") != _check(text):
            raise BadVolume(
                f"{self.notes} is damaged: put back a copy, or remove it. What a cluster and "
                "the last scrub noted in this volume is lost then"
            )
        return {key: bytes.fromhex(value) for key, value in json.loads(text).items()}

    def write_notes(self, notes: dict[str, bytes]) -> None:
        """Replace them all, durably."""
        text = json.dumps({key: value.hex() for key, value in notes.items()}).encode()
        self._replace(self.notes, _check(text).encode() + b"\n" + text)

    # Room for a full disk

    def keep_reserve(self) -> None:
        """Take the reserve, where the disk has plenty of room and it is not there."""
        free, total, read_only = self.disk.space(self.path)
        size = min(_RESERVE, total // 64)
        if read_only or free < 4 * size or self.disk.exists(self.reserve):
            return
        part = self.reserve + PART
        self.disk.unlink(part)
        fd = self.disk.create(part)
        try:
            self.disk.allocate(fd, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EOPNOTSUPP, errno.EINVAL, errno.EDQUOT):
                raise
            self.disk.unlink(part)
        else:
            self.disk.rename(part, self.reserve)
        finally:
            self.disk.close(fd)

    def release_reserve(self) -> None:
        """Give the reserve back to the disk: it is full."""
        self.disk.unlink(self.reserve)

    def _read(self, path: str) -> bytes:
        with self.disk.opened(path) as fd:
            return bytes(self.disk.read(fd, self.disk.size(fd), 0))

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


def _check(content: bytes) -> str:
    return f"{crc32c(content):08x}"
