"""The folder of a volume: what lies in it, and how one is recognised.

dolmen-volume    one line: the format's version; made last, so a folder with it is whole
holder           the machine that has the volume open
opening.lock     held while a process opens the volume, one at a time
users.lock       held (shared) by every process that has it open
merge.lock       held by the process that merges
compaction.lock  held by the process that compacts
index/           LMDB, durable: where every blob lies
index.doubtful   a flush of the index failed: it is to be rebuilt before it is used again
index.part, .new one that a reindex is building; one that waits to take the place of index
recent/          LMDB, a view of the segments' tails; emptied by whoever opens first
active/          segments being written or not yet wholly in the index
sealed/NNNNNN/   all others, 4,096 to a folder
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import lmdb

from dolmen.errors import BadVolume
from dolmen.stores.volume.disk import Disk

FORMAT = 1
MARKER = "dolmen-volume"
_SUFFIX = ".seg"
UNFINISHED = ".part"


class Layout:
    """The paths in one volume's folder."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.index = os.path.join(root, "index")
        self.new_index = self.index + ".new"
        self.unfinished_index = self.index + ".part"
        self.recent = os.path.join(root, "recent")
        self.active = os.path.join(root, "active")
        self.sealed = os.path.join(root, "sealed")
        self.marker = os.path.join(root, MARKER)
        self.holder = os.path.join(root, "holder")

    def lock(self, name: str) -> str:
        """The path of one of the locks."""
        return os.path.join(self.root, name + ".lock")

    def active_segment(self, number: int) -> str:
        """The path of a segment that is not sealed."""
        return os.path.join(self.active, f"{number:08x}{_SUFFIX}")

    def unfinished(self, number: int) -> str:
        """The path of a segment that nobody may read yet."""
        return os.path.join(self.active, f"{number:08x}{UNFINISHED}")

    def sealed_folder(self, number: int) -> str:
        """The folder of a sealed segment."""
        return os.path.join(self.sealed, f"{number >> 12:06x}")

    def sealed_segment(self, number: int) -> str:
        """The path of a sealed segment."""
        return os.path.join(self.sealed_folder(number), f"{number:08x}{_SUFFIX}")


def segment_number(name: str) -> int | None:
    """The number in a segment's file name, None for any other name."""
    stem, suffix = os.path.splitext(name)
    if suffix != _SUFFIX or len(stem) != 8:
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


@contextmanager
def usable(root: str) -> Iterator[None]:
    """Say of whatever the system or LMDB refuses that the folder can't be used: `BadVolume`."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        if "already open in this process" in str(error):
            raise BadVolume(
                f"{root} is already open in this process: it was named twice"
            ) from error
        raise BadVolume(
            f"{root} can't be used as a volume: {error}; it takes a folder on a local disk that "
            "works and has room, which the user dolmen runs as may read and write"
        ) from error


def prepare(disk: Disk, root: str) -> Layout:
    """Make the folder of a volume, or check the one that is there.

    Raises `BadVolume` for a folder that holds something else, is of a newer
    format, or can't be read or written.
    """
    layout = Layout(root)
    with usable(root):
        if not disk.exists(layout.marker):
            _make(disk, layout)
        fd = disk.open(layout.marker)
        try:
            found = disk.read(fd, 100, 0)
        finally:
            disk.close(fd)
    words = found.decode("ascii", "replace").split()
    if words[:2] != ["dolmen", "volume"] or len(words) < 3 or not words[2].isdigit():
        raise BadVolume(f"{layout.marker} is not the mark of a volume: it holds {found[:40]!r}")
    if int(words[2]) > FORMAT:
        raise BadVolume(
            f"{root} is a volume of format {words[2]}; this dolmen knows formats up to {FORMAT}: "
            "use the newer dolmen that wrote it"
        )
    return layout


def _make(disk: Disk, layout: Layout) -> None:
    """Make a new volume; of several processes that try at once the first one does."""
    with suppress(FileExistsError):
        disk.add_directory(layout.root)
    with suppress(PermissionError):  # in a folder we may not open, others made this one
        disk.flush_directory(os.path.dirname(layout.root) or ".")
    folders = (layout.index, layout.recent, layout.active, layout.sealed)
    files = (layout.marker, layout.holder, layout.marker + ".part", layout.holder + ".part")
    locks = [layout.lock(name) for name in ("opening", "users", "merge", "compaction")]
    ours = {os.path.basename(path) for path in (*folders, *files, *locks)}
    foreign = [name for name in disk.names(layout.root) if name not in ours]
    if foreign:
        raise BadVolume(
            f"{layout.root} is not a volume and not empty (it holds {foreign[0]!r}); nothing was "
            "changed: choose an empty or a new folder"
        )
    opening = disk.open_lock(layout.lock("opening"))
    try:
        disk.lock(opening, wait=True)
        if not disk.exists(layout.marker):
            for folder in folders:
                disk.make_directory(folder)
            write_whole(disk, layout.marker, b"dolmen volume %d\n" % FORMAT)
    finally:
        disk.close(opening)


def settle_names(disk: Disk, layout: Layout) -> None:
    """Return when each segment's name, or its end, is on disk as it is seen now.

    Whoever gave it or took it may have been killed before that was flushed.
    """
    for folder in disk.names(layout.sealed):
        disk.flush_directory(os.path.join(layout.sealed, folder))
    disk.flush_directory(layout.active)


def doubt(layout: Layout) -> str:
    """What to say of a volume whose index could not be flushed once."""
    return (
        f"the index of {layout.root} could not be flushed, so what it holds is not certain; all "
        "blobs are safe in the segments. Look at the disk, stop what uses the volume, then run "
        f"`dolmen reindex volume:{layout.root}`"
    )


def write_whole(disk: Disk, path: str, content: bytes) -> None:
    """Put a small file there, durably: after any crash it is absent, as before, or whole."""
    part = path + ".part"
    if disk.exists(part):
        disk.unlink(part)
    fd = disk.create(part)
    try:
        disk.write(fd, [content], 0)
        disk.flush(fd)
    finally:
        disk.close(fd)
    disk.rename(part, path)
    disk.flush_directory(os.path.dirname(path))
