"""Rebuilding a volume's index from its segments alone.

Every segment is scanned from its beginning, and of all records of a name the one
with the highest sequence decides, as it did when it was written. The new index is
built beside the old one and takes its place only when it is complete and on disk,
so an interrupted run changes nothing. What can't be read is reported, never
guessed; where a record's head can be read but not its data, the blob is known and
its copy will fail its check when it is read.

Where the old index can be read, three things are taken over that stand nowhere else:
the notes, which copies are quarantined, and which names had a write that no segment
shows any more. Those answer as damaged then, not as absent or with an older content.

Segments in `active/` may end in what a crash tore off, or in what a killed process never
flushed. So they are flushed and their data is checked, and torn parts are sealed off first, as
in every opening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import lmdb

from dolmen.errors import Corrupt
from dolmen.names import PARTITIONS
from dolmen.record import Kind
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.key import name_of
from dolmen.stores.volume.layout import Layout, prepare, segment_number, settle_names, usable
from dolmen.stores.volume.opening import Membership, put_new_index_in_place
from dolmen.stores.volume.recovery import owner_of, settle_file, sort_out
from dolmen.stores.volume.scan import Scanner
from dolmen.stores.volume.segment import SEGMENT_HEADER
from dolmen.stores.volume.slices import Slice

_PAGE = 2048
_ENTRIES = 50_000
"""Entries of a segment that are held in memory."""


@dataclass(slots=True)
class Reindexed:
    """What a rebuild found. `bytes` is the sum of the segments' sizes."""

    segments: int = 0
    records: int = 0
    bytes: int = 0
    blobs: int = 0
    tombstones: int = 0
    damaged: list[str] = field(default_factory=list)
    """A line for everything that could not be read."""


def reindex(
    path: str,
    *,
    disk: Disk | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Reindexed:
    """Rebuild the index of the volume in a folder that no process has open.

    `progress(done, total)` is told how many segments have been scanned. Raises
    `BadVolume` when the volume is in use or the folder is none.
    """
    disk = disk or Disk()
    layout = prepare(disk, path)
    membership = Membership(disk, layout)
    try:
        with usable(path):
            membership.join_alone()
            put_new_index_in_place(disk, layout)
            disk.remove_folder(layout.unfinished_index)
            disk.make_directory(layout.unfinished_index)
            index = Index(disk, layout.unfinished_index)
            try:
                result = _rebuild(disk, layout, index, progress)
                if disk.exists(layout.index):
                    _take_over(disk, layout.index, index, result)
                _count(index, result)
                index.settle()
            finally:
                index.close()
            disk.rename(layout.unfinished_index, layout.new_index)
            disk.flush_directory(layout.root)
            put_new_index_in_place(disk, layout)
    finally:
        membership.leave()
    return result


def _take_over(disk: Disk, path: str, index: Index, result: Reindexed) -> None:
    """Take over from the old index what stands nowhere else, as far as it can be read."""
    try:
        old = Index(disk, path)
    except lmdb.Error as error:
        result.damaged.append(f"the old index and its notes can't be read: {error}")
        return
    try:
        for key, note in old.notes().items():
            index.note(key, note)
        left = [(0, PARTITIONS)]
        while left:
            page, left = old.page(left, _PAGE)
            with index.slice() as change:
                change.apply(_lost(page, index, result))
    except lmdb.Error as error:
        result.damaged.append(f"the old index can't be read to its end: {error}")
    finally:
        old.close()


def _lost(
    page: list[tuple[bytes, bytes]], index: Index, result: Reindexed
) -> list[tuple[bytes, bytes]]:
    """Those of the old index's entries whose copies are damaged, marked as such."""
    lost = []
    for key, value in page:
        entry, found = unpack(value), index.sequence_of(key)
        if found < entry.sequence:
            result.damaged.append(f"{name_of(key)}: no segment shows its last write any more")
        elif found > entry.sequence or not entry.damaged:
            continue
        lost.append((key, entry._replace(damaged=True).pack()))
    return lost


def _rebuild(
    disk: Disk, layout: Layout, index: Index, progress: Callable[[int, int], None]
) -> Reindexed:
    result = Reindexed()
    settle_names(disk, layout)
    segments = list(_segments(disk, layout))
    numbers = {number for number, _, _ in segments}
    for done, (number, path, active) in enumerate(segments):
        progress(done, len(segments))
        fd = disk.open(path, write=active)
        try:
            _take(disk, fd, number, index, result, there=numbers, active=active)
        finally:
            disk.close(fd)
    progress(len(segments), len(segments))
    return result


def _placed(entry: Entry, there: set[int]) -> Entry:
    """The entry, as damaged where the segment it means is not there (see `move`)."""
    return entry if entry.segment in there else entry._replace(damaged=True)


def _count(index: Index, result: Reindexed) -> None:
    for _, value in index.entries():
        if unpack(value).kind == Kind.TOMBSTONE:
            result.tombstones += 1
        else:
            result.blobs += 1


def _segments(disk: Disk, layout: Layout) -> Iterator[tuple[int, str, bool]]:
    """Number, path and whether it is active, of every segment."""
    for name in disk.names(layout.active):
        number = segment_number(name)
        if number is not None:
            yield number, layout.active_segment(number), True
    for folder in disk.names(layout.sealed):
        for name in disk.names(f"{layout.sealed}/{folder}"):
            number = segment_number(name)
            if number is not None:
                yield number, layout.sealed_segment(number), False


class _Entries:
    """Those of a segment on their way into the index, so many at a time."""

    def __init__(self, index: Index, there: set[int]) -> None:
        self._index, self._there = index, there
        self._latest: dict[bytes, Entry] = {}
        self.count = 0

    def take(self, found: tuple[bytes, Entry]) -> None:
        """Take in one."""
        key, entry = found
        self.count += 1
        if key not in self._latest or self._latest[key].sequence < entry.sequence:
            self._latest[key] = entry
        if len(self._latest) == _ENTRIES:
            with self._index.slice() as change:
                self.apply(change)

    def apply(self, change: Slice) -> None:
        """Let those at hand be changed in the index."""
        latest, self._latest = self._latest, {}
        change.apply([(key, _placed(latest[key], self._there).pack()) for key in sorted(latest)])


def _take(
    disk: Disk,
    fd: int,
    number: int,
    index: Index,
    result: Reindexed,
    *,
    there: set[int],
    active: bool,
) -> None:
    if active:
        settle_file(disk, fd, 0)
    try:
        owner = owner_of(disk, fd, number)
    except Corrupt as error:
        result.damaged.append(str(error))
        with index.slice() as change:
            change.mark(number, 0)  # its number stays taken
        return
    scanner = Scanner(
        disk,
        fd,
        owner,
        verify=lambda head: active or head.kind == Kind.TOUCH,
        sealed=not active,
    )
    entries = _Entries(index, there)
    records = scanner.records(SEGMENT_HEADER)
    recovered = sort_out(
        disk, fd, number, owner, records, scanner.size, sealed=not active, take=entries.take
    )
    if recovered.sealed_off:
        disk.flush(fd)
    with index.slice() as change:
        entries.apply(change)
        change.mark(number, recovered.end)
    result.segments += 1
    result.records += entries.count
    result.bytes += scanner.size
    result.damaged += [
        f"segment {number:08x}: nothing can be made out from byte {gap.start} to {gap.stop}"
        for gap in recovered.damaged
    ]
