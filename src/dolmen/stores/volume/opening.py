"""Opening a volume's folder: the lock first, then the index, then the end of the log.

Read first: `folder`, `recovery`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field

from dolmen.store import IDENTITY
from dolmen.stores.volume import segment
from dolmen.stores.volume.catalog import Catalog
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.folder import Folder, usable
from dolmen.stores.volume.index import Index, TailIndex
from dolmen.stores.volume.recovery import recover

SEGMENT_SIZE = 1 << 30
_SCARCE = 64 << 20
"""With less room than this on the disk the reserve is released before the index is opened."""


@dataclass(slots=True)
class Opened:
    """What an open volume consists of. `lock` and `active` are descriptors to be closed."""

    folder: Folder
    lock: int | None
    catalog: Catalog
    notes: dict[str, bytes]
    active: segment.Active | None
    """None when it was opened read-only."""
    segment_size: int
    damaged: list[str] = field(default_factory=list)
    """Places in the log that can't be made out."""


def open_folder(disk: Disk, path: str, read_only: bool, segment_size: int | None) -> Opened:
    """Open a volume, or make one where there is none. Blocks while it recovers.

    Raises `BadVolume` when the folder can't be used or another process has it open.
    """
    folder = Folder(disk, path)
    with ExitStack() as leaving, usable(path):
        folder.check_foreign()
        if not read_only and not disk.exists(folder.path):
            disk.make_directory(folder.path)
        lock = folder.take_lock(read_only=read_only)
        if lock is not None:
            leaving.callback(disk.close, lock)
        folder.prepare(read_only=read_only)
        if lock is not None and not read_only:
            folder.name_owner(lock, f"process {os.getpid()}")
        index = _open_index(folder, read_only=read_only)
        leaving.callback(index.close)
        catalog = Catalog(index)
        recovered = recover(folder, catalog, read_only=read_only)
        notes = folder.read_notes() | {IDENTITY: folder.identity.encode()}
        size = segment_size or min(SEGMENT_SIZE, max(disk.space(folder.path)[1] // 64, 1 << 20))
        active = None
        if not read_only:
            end = recovered.end
            active = (
                segment.create(folder, catalog.take_number())
                if end is None
                else segment.reopen(folder, *end)
            )
            leaving.callback(disk.close, active.fd)
            folder.keep_reserve()
        leaving.pop_all()
    return Opened(folder, lock, catalog, notes, active, size, recovered.damaged)


def _open_index(folder: Folder, *, read_only: bool) -> Index:
    disk = folder.disk
    if not read_only:
        if disk.space(folder.path)[0] < _SCARCE:
            folder.release_reserve()  # the index can't be opened without any room
        return disk.open_index(folder.index, read_only=False)
    if not disk.exists(folder.index):
        return TailIndex()
    try:
        return TailIndex(disk.open_index(folder.index, read_only=True))
    except FileNotFoundError:
        return TailIndex()
