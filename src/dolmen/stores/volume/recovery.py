"""Opening: the index is brought up to the end of the log; reindex: it is made anew.

The segments beyond the watermark are scanned, in order. Of the last one the tail may be torn:
what was written after the last flush that a record knows of is checked to its end, and cut
off from the first record that is not whole; nobody was answered for it. Anything else that
can't be read is damage. Before that the segments are flushed: a killed process may have left
records that only the page cache has, and what is shown must be on disk.

Read-only, nothing is flushed, cut off or removed.

Read first: `scan`, `catalog`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from dolmen.errors import BadVolume, Corrupt
from dolmen.record import HEAD_MAX, Kind, decode_head
from dolmen.stores.volume.catalog import Catalog, Change
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, entry_of, key_of, name_of, unpack
from dolmen.stores.volume.folder import BLOB, PART, SEGMENT, Folder, usable
from dolmen.stores.volume.index import Index, TailIndex
from dolmen.stores.volume.scan import Gap, Scanner
from dolmen.stores.volume.segment import SEGMENT_HEADER

_log = logging.getLogger("dolmen.volume")
_CHUNK = 1_000
Progress = Callable[[int, int], None]


class End(NamedTuple):
    """The last segment, and where its records end."""

    number: int
    owner: bytes
    offset: int


@dataclass(slots=True)
class Recovered:
    """What a recovery did."""

    end: End | None = None
    """None where there is no segment to go on in."""
    records: int = 0
    segments: int = 0
    damaged: list[str] = field(default_factory=list)
    """A sentence for every place where records can't be made out."""


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
    watermark, disk = catalog.watermark, folder.disk
    segments, blobs, parts = list[int](), list[int](), list[int]()
    if watermark.number:
        reach = folder.file(watermark.number, SEGMENT)
        if disk.exists(reach) and disk.size_at(reach) >= watermark.offset:
            segments.append(watermark.number)
        elif behind:
            raise _ahead(folder, watermark.number)
    # Whatever was made since has a number from the floor on.
    for number, suffix in folder.numbers(watermark.floor):
        catalog.know_number(number)
        if suffix == PART:
            parts.append(number)
        elif suffix == BLOB:
            blobs.append(number)
        elif number > watermark.number:
            segments.append(number)
    done = Recovered(segments=len(segments))
    if not read_only:
        disk.flush_directory(folder.path)
        disk.flush_directory(folder.segments)
        for first in {number >> 12: number for number in segments}.values():
            folder.flush_group(first)
    for at, number in enumerate(segments):
        if progress is not None:
            progress(at, len(segments))
        _replay(folder, catalog, number, done, last=number == segments[-1], read_only=read_only)
    for line in done.damaged:
        _log.error("%s: %s", folder.path, line)
    if read_only:
        return done
    folder.remove(parts, PART)
    folder.remove([number for number in blobs if _unreferenced(folder, catalog, number)], BLOB)
    catalog.floor = None
    if catalog.unreferenced:
        freed = sorted(catalog.unreferenced)
        folder.remove(freed, BLOB)
        catalog.forget_files([], freed)
    return done


def _replay(
    folder: Folder, catalog: Catalog, number: int, done: Recovered, *, last: bool, read_only: bool
) -> None:
    disk, watermark = folder.disk, catalog.watermark
    start = watermark.offset if number == watermark.number else SEGMENT_HEADER
    fd = disk.open(folder.file(number, SEGMENT), write=not read_only)
    try:
        if not read_only:
            disk.flush(fd)
            disk.forget(fd)
        scanner = Scanner(disk, fd)
        if scanner.owner is None:
            if scanner.size > SEGMENT_HEADER:  # else nothing was ever committed to it
                done.damaged.append(f"segment {number:08x} can't be read at all")
            return
        if not scanner.header_is_sound:
            done.damaged.append(f"the header of segment {number:08x} is damaged; its records count")
        flushed = scanner.size
        if last:
            flushed = start
            for found in scanner.records(start):
                if not isinstance(found, Gap):
                    flushed = max(flushed, found.head.flushed)
        end = _apply(catalog, scanner, number, start, flushed, done)
        if last:
            done.end = End(number, scanner.owner, end)
    finally:
        disk.close(fd)


def _apply(
    catalog: Catalog, scanner: Scanner, number: int, start: int, flushed: int, done: Recovered
) -> int:
    """Reflect the records of a segment in the catalog; returns where they end."""
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
            catalog.apply(change, number, end)
            change = Change()
    catalog.apply(change, number, end)
    return end


def _unreferenced(folder: Folder, catalog: Catalog, number: int) -> bool:
    """Whether no entry refers to a blob's own file: its upload was not committed."""
    fd = folder.disk.open(folder.file(number, BLOB))
    try:
        head = decode_head(folder.disk.read(fd, HEAD_MAX, SEGMENT_HEADER))
        entry = catalog.get(key_of(head.name.decode()))
    except Corrupt:
        return False  # whose it is can't be told
    finally:
        folder.disk.close(fd)
    return entry is None or not entry.alone or entry.data[0] != number


def _ahead(folder: Folder, number: int) -> BadVolume:
    return BadVolume(
        f"the index of {folder.path} knows more than its segments: segment {number:08x} is missing "
        f"or cut short. Put it back, or run `dolmen reindex {folder.path}` to go on with what "
        "is there"
    )


@dataclass(slots=True)
class Reindexed:
    """What a reindex found. `bytes`: of the data of all blobs."""

    blobs: int = 0
    tombstones: int = 0
    bytes: int = 0
    records: int = 0
    segments: int = 0
    damaged: list[str] = field(default_factory=list)


def reindex(path: str, *, disk: Disk | None = None, progress: Progress | None = None) -> Reindexed:
    """Rebuild the index of a volume that nobody has open from its segments.

    Interrupted, it goes on when the volume is opened next. Where the old index can be read, it
    says which copies are quarantined, and of which names the last record is lost: those answer
    `Corrupt`, not "not there" and not with older content.
    """
    folder = Folder(disk or Disk(), path)
    disk = folder.disk
    with usable(path):
        folder.check_foreign()
        lock = folder.take_lock(read_only=False)
        assert lock is not None
        try:
            folder.prepare(read_only=False)
            if not disk.exists(folder.old_index) and disk.exists(folder.index):
                disk.rename(folder.index, folder.old_index)
            disk.remove_index(folder.index)
            index = disk.open_index(folder.index, read_only=False)
            try:
                result = _rebuild(folder, index, progress)
                index.flush()
            finally:
                index.close()
            disk.remove_index(folder.old_index)
        finally:
            disk.close(lock)
    return result


def _rebuild(folder: Folder, index: Index, progress: Progress | None) -> Reindexed:
    catalog = Catalog(index)
    done = recover(folder, catalog, read_only=False, progress=progress)
    result = Reindexed(records=done.records, segments=done.segments, damaged=done.damaged)
    if folder.disk.exists(folder.old_index):
        try:
            result.damaged += _carry_over(folder, catalog)
        except (OSError, BadVolume) as error:
            result.damaged.append(
                f"the old index can't be read ({error}); which copies were quarantined is lost"
            )
    for _, value in index.scan():
        entry = unpack(value)
        if entry.kind == Kind.TOMBSTONE:
            result.tombstones += 1
        else:
            result.blobs += 1
            result.bytes += entry.length
    return result


def _carry_over(folder: Folder, catalog: Catalog) -> list[str]:
    """Mark as damaged what the old index knows and the segments do not show any more.

    Returns a sentence for every name whose last record is lost.
    """
    lost = []
    old = folder.disk.open_index(folder.old_index, read_only=True)
    try:
        known = Catalog(TailIndex(old))
        recover(folder, known, read_only=True, behind=False)
        change = Change()
        for key, pairs in groupby(
            merge(
                ((key, value, True) for key, value in catalog.index.scan()),
                ((key, value, False) for key, value in known.index.scan()),
            ),
            key=itemgetter(0),
        ):
            values = {new: value for _, value, new in pairs}
            if values.get(True) != values.get(False):
                now, then = _entry(values.get(True)), _entry(values.get(False))
                if now is None or then is None or now.data != then.data or now.head != then.head:
                    lost.append(f"{name_of(key)}: no segment shows its last write any more")
                if then is not None:
                    then = then._replace(damaged=True)
                change.put(key, name_of(key).encode(), now, then)
        catalog.apply(change, *catalog.watermark[:2])
    finally:
        old.close()
    return lost


def _entry(value: bytes | None) -> Entry | None:
    return None if value is None else unpack(value)
