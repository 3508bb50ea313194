"""Opening a volume, whereby its index is brought up to the end of the log; and reindex.

The lock comes first, then the index, then the segments beyond its watermark, in order. Of the
last one the tail may be torn: what was written after the last flush that a record knows of is
checked to its end, and cut off from the first record that is not whole; nobody was answered
for it. Anything else that can't be read is damage. Before that the segments are flushed: a
killed process may have left records that only the page cache has, and what is shown must be on
disk.

Read-only, nothing is flushed, cut off or removed.

Read first: `folder`, `segment`, `catalog`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import itemgetter

from dolmen.errors import BadVolume
from dolmen.record import Kind
from dolmen.store import IDENTITY
from dolmen.stores.volume import segment
from dolmen.stores.volume.catalog import Catalog, Change
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, entry_of, key_of, name_of, unpack
from dolmen.stores.volume.folder import BLOB, PART, SEGMENT, Folder, usable
from dolmen.stores.volume.index import Index, TailIndex
from dolmen.stores.volume.segment import BEGIN, Gap, Scanner

_log = logging.getLogger("dolmen.volume")
_SCARCE = 64 << 20
"""With less room than this on the disk the reserve is released before the index is opened."""
_CHUNK = 1_000
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Recovered:
    """What a recovery did; of a reindex also what is there. `bytes`: of the data of all blobs."""

    blobs: int = 0
    tombstones: int = 0
    bytes: int = 0
    records: int = 0
    segments: int = 0
    damaged: list[str] = field(default_factory=list)
    """A sentence for every place where records can't be made out."""


@dataclass(slots=True)
class Opened:
    """What an open volume consists of."""

    folder: Folder
    lock: int | None
    catalog: Catalog
    notes: dict[str, bytes]
    active: segment.Active | None
    """None when it was opened read-only."""
    recovered: Recovered

    def close(self) -> None:
        """Let go of it; raises `OSError` when the index can't be flushed, which the log has."""
        try:
            if self.active is not None:
                self.folder.disk.close(self.active.fd)
            self.catalog.index.flush()
            self.catalog.index.close()
        finally:
            if self.lock is not None:
                self.folder.disk.close(self.lock)


def open_folder(
    disk: Disk,
    path: str,
    *,
    read_only: bool = False,
    anew: bool = False,
    progress: Progress | None = None,
) -> Opened:
    """Open a volume, or make one where there is none. Blocks while it recovers.

    `anew` sets the index aside and begins with an empty one. Raises `BadVolume` when the folder
    can't be used or another process has it open.
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
        if anew:
            if not disk.exists(folder.old_index) and disk.exists(folder.index):
                disk.rename(folder.index, folder.old_index)
            disk.remove_index(folder.index)
        index = _open_index(folder, read_only=read_only)
        leaving.callback(index.close)
        catalog = Catalog(index)
        recovered = recover(folder, catalog, read_only=read_only, progress=progress)
        notes = folder.read_notes() | {IDENTITY: folder.identity.encode()}
        active = None
        if not read_only:
            if disk.exists(folder.old_index):  # of this reindex, or of one that broke off
                recovered.damaged += _carry_over(folder, catalog)
            _clean(folder, catalog)
            active = _active(folder, catalog)
            leaving.callback(disk.close, active.fd)
            folder.keep_reserve()
        leaving.pop_all()
    return Opened(folder, lock, catalog, notes, active, recovered)


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


def _active(folder: Folder, catalog: Catalog) -> segment.Active:
    """The segment to go on in: the last one, if anything in it could be made out."""
    number, end = catalog.watermark
    if number and all(n <= number for n, suffix in folder.numbers() if suffix == SEGMENT):
        active = segment.reopen(folder, number, end)
        if active is not None:
            return active
    return segment.create(folder, catalog.take_number())


def recover(
    folder: Folder,
    catalog: Catalog,
    *,
    read_only: bool,
    behind: bool = True,
    progress: Progress | None = None,
) -> Recovered:
    """Bring the catalog up to the end of the log. Raises `BadVolume`, `OSError`.

    `behind`: refuse a log that ends before the watermark, as part of it is missing.
    """
    disk, (reflected, offset) = folder.disk, catalog.watermark
    segments: list[int] = []
    for number, suffix in folder.numbers():
        catalog.know_number(number)
        if suffix == SEGMENT and number > reflected:
            segments.append(number)
    if reflected:
        path = folder.file(reflected, SEGMENT)
        if disk.exists(path) and disk.size(path) >= offset:
            segments.insert(0, reflected)
        elif behind:
            raise _ahead(folder, reflected)
    done = Recovered(segments=len(segments))
    if not read_only:
        disk.flush_directory(folder.path)
        disk.flush_directory(folder.segments)
    for at, number in enumerate(segments):
        if progress is not None:
            progress(at, len(segments))
        _replay(folder, catalog, number, done, last=number == segments[-1], read_only=read_only)
    for line in done.damaged:
        _log.error("%s: %s", folder.path, line)
    return done


def _clean(folder: Folder, catalog: Catalog) -> None:
    """Remove what is not complete, and large blobs that no entry refers to."""
    files = list(folder.numbers())
    folder.remove([n for n, suffix in files if suffix == PART], PART)
    dead = catalog.dead.union(
        n for n, suffix in files if suffix == BLOB and not catalog.live.get(n)
    )
    if dead:
        folder.remove(dead, BLOB)
        catalog.forget(dead)


def _replay(
    folder: Folder, catalog: Catalog, number: int, done: Recovered, *, last: bool, read_only: bool
) -> None:
    """Reflect a segment in the catalog, from the watermark on."""
    disk, (reflected, offset) = folder.disk, catalog.watermark
    start = offset if number == reflected else BEGIN
    with disk.opened(folder.file(number, SEGMENT), write=not read_only) as fd:
        if not read_only:
            disk.flush(fd)
            disk.forget(fd)
        scanner = Scanner(disk, fd)
        if scanner.owner is None:
            if scanner.size > BEGIN:  # else nothing was ever committed to it
                done.damaged.append(f"segment {number:08x} can't be read at all")
            return
        if not scanner.begins_well:
            done.damaged.append(f"segment {number:08x} is damaged up to byte {BEGIN}")
        flushed = scanner.size
        if last:
            flushed = start
            for found in scanner.records(start):
                if not isinstance(found, Gap):
                    flushed = max(flushed, found.head.flushed)
        _apply(catalog, scanner, number, start, flushed, done)


def _apply(
    catalog: Catalog, scanner: Scanner, number: int, start: int, flushed: int, done: Recovered
) -> None:
    change, end = Change(), start
    for found in scanner.records(start):
        if isinstance(found, Gap):
            if found.start >= flushed:
                break
            done.damaged.append(
                f"segment {number:08x} is damaged from byte {found.start} to {found.stop}"
            )
            end = found.stop
            continue
        if found.offset >= flushed and not scanner.is_sound(found):
            break
        head, end = found.head, found.stop
        entry = entry_of(head, (number, found.offset), found.touch)
        if entry is not None and entry.alone:
            catalog.know_number(entry.data[0])
        key = key_of(head.name.decode())
        old = change.entries[key] if key in change.entries else catalog.get(key)
        change.put(key, head.name, old, entry)
        done.records += 1
        if len(change.entries) >= _CHUNK:
            catalog.apply(change, (number, end))
            change = Change()
    catalog.apply(change, (number, end))


def _ahead(folder: Folder, number: int) -> BadVolume:
    return BadVolume(
        f"the index of {folder.path} knows more than its segments: segment {number:08x} is missing "
        f"or cut short. Put it back, or run `dolmen reindex {folder.path}` to go on with what "
        "is there"
    )


def reindex(path: str, *, disk: Disk | None = None, progress: Progress | None = None) -> Recovered:
    """Rebuild the index of a volume that nobody has open from its segments.

    Interrupted, it goes on when the volume is opened next. Where the old index can be read, it
    says which copies are quarantined, and of which names the last record is lost: those answer
    `Corrupt`, not "not there" and not with older content.
    """
    with usable(path):
        opened = open_folder(disk or Disk(), path, anew=True, progress=progress)
        done = opened.recovered
        try:
            for _, value in opened.catalog.entries():
                entry = unpack(value)
                live = entry.kind != Kind.TOMBSTONE
                done.blobs += live
                done.tombstones += not live
                done.bytes += entry.length
        finally:
            opened.close()
    return done


def _carry_over(folder: Folder, catalog: Catalog) -> list[str]:
    """Take over what only the old index knows, and remove it. Returns what is lost."""
    try:
        lost = _mark_lost(folder, catalog)
    except (OSError, BadVolume) as error:
        lost = [f"the old index can't be read ({error}); which copies were quarantined is lost"]
    catalog.index.flush()
    folder.disk.remove_index(folder.old_index)
    return lost


def _mark_lost(folder: Folder, catalog: Catalog) -> list[str]:
    """Mark as damaged what the old index knows and the segments do not show any more.

    Returns a sentence for every name whose last record is lost.
    """
    lost = []
    change = Change()
    with closing(folder.disk.open_index(folder.old_index, read_only=True)) as old:
        known = Catalog(TailIndex(old))
        recover(folder, known, read_only=True, behind=False)
        catalog.know_number(known.take_number())  # what it refers to counts as given
        new = ((key, value, True) for key, value in catalog.entries())
        both = merge(new, ((key, value, False) for key, value in known.entries()))
        for key, pairs in groupby(both, key=itemgetter(0)):
            values = {is_new: value for _, value, is_new in pairs}
            if values.get(True) == values.get(False):
                continue
            now, then = _entry(values.get(True)), _entry(values.get(False))
            if now is None or then is None or now.data != then.data or now.head != then.head:
                lost.append(f"{name_of(key)}: no segment shows its last write any more")
            if then is not None:
                then = then._replace(damaged=True)
            change.put(key, name_of(key).encode(), now, then)
    catalog.apply(change)
    return lost


def _entry(value: bytes | None) -> Entry | None:
    return None if value is None else unpack(value)
