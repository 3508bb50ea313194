"""Opening: what lies in the segments beyond the watermarks becomes visible again.

For every segment in `active/` whose lock is free (its writer is gone):

1. flush it, then drop its cached pages. A writer that was killed may have left
   bytes in the page cache that never reached the disk; showing them before they
   are flushed would show what a power cut could still take away.
2. scan from the watermark. Records the index or recent already has (sequence at
   least as high) are passed over without reading their data.
3. what can't be read and was never flushed is sealed off: a torn tail is cut off,
   a torn record before others is covered by an empty extent. What was flushed and
   fails its checksum becomes a quarantined entry: damaged, not absent.
4. flush again, then let the entries be seen.

Then the claims of the dead writers are dropped, all at once: a name may be claimed by
one segment's commit and have its record in another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dolmen.errors import BadVolume, Corrupt
from dolmen.record import HEAD_MAX, HEADER_SIZE, Head, Kind, decode_head
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.key import key_of
from dolmen.stores.volume.layout import UNFINISHED, Layout, segment_number
from dolmen.stores.volume.recent import Reach, Recent
from dolmen.stores.volume.scan import Found, Gap, Scanner, salvage
from dolmen.stores.volume.segment import SEGMENT_HEADER, decode_header, extent_head

_log = logging.getLogger("dolmen.volume")


@dataclass(slots=True)
class Recovered:
    """What scanning one segment brought up."""

    number: int
    end: int
    entries: list[tuple[bytes, Entry]] = field(default_factory=list)
    damaged: list[Gap] = field(default_factory=list)
    """Flushed bytes that can't be read any more and whose names are lost."""
    sealed_off: bool = False
    """The file was changed to cut off what was torn."""

    def latest(self) -> dict[bytes, Entry]:
        """Of each name the entry with the highest sequence."""
        latest: dict[bytes, Entry] = {}
        for key, entry in self.entries:
            if key not in latest or latest[key].sequence < entry.sequence:
                latest[key] = entry
        return latest


def leftover_segments(disk: Disk, layout: Layout) -> list[int]:
    """Numbers of the segments in `active/`, ascending."""
    numbers = (segment_number(name) for name in disk.names(layout.active))
    return sorted(number for number in numbers if number is not None)


def recover(disk: Disk, layout: Layout, index: Index, recent: Recent) -> int:
    """Recover every segment whose writer is gone; returns how many entries came up.

    The caller holds the opening lock. Raises `BadVolume` for a segment that is none.
    """
    reached = recent.segments()
    entries = 0
    dead: list[int] = []
    for name in disk.names(layout.active):
        if name.endswith(UNFINISHED):
            _drop_unfinished(disk, f"{layout.active}/{name}")
    for number in leftover_segments(disk, layout):
        reach = reached.get(number)
        if reach is not None and reach.finished:
            continue
        path = layout.active_segment(number)
        try:
            fd = disk.open(path, write=True)
        except FileNotFoundError:  # sealed or dropped in between
            continue
        try:
            if not disk.lock(fd):
                continue  # its writer lives
            if not dead:  # a writer that was killed may not have flushed its segment's name
                disk.flush_directory(layout.active)
            dead.append(number)
            start = max(index.watermark(number), reach.settled if reach else 0)
            recovered = _recover_segment(disk, fd, number, start, index, recent)
            if reach is None and start <= recovered.end == SEGMENT_HEADER:
                if disk.linked(fd):
                    disk.unlink(path)  # nothing was ever answered in it
                continue
        except Corrupt as error:
            raise BadVolume(str(error)) from error
        finally:
            disk.close(fd)
        entries += len(recovered.entries)
        _let_be_seen(index, recent, recovered)
        for gap in recovered.damaged:
            _log.error(
                "segment %08x is damaged from byte %d to %d; what lay there is lost here: "
                "run `dolmen replicate` to bring it back from another copy",
                number,
                gap.start,
                gap.stop,
            )
    if dead:
        with recent.change() as change:
            change.release_all(dead)
    return entries


def _drop_unfinished(disk: Disk, path: str) -> None:
    """Remove a segment that was never published, unless its writer lives."""
    try:
        fd = disk.open(path, write=True)
    except FileNotFoundError:  # published or dropped in between
        return
    try:
        if disk.lock(fd) and disk.exists(path):
            disk.unlink(path)
    finally:
        disk.close(fd)


def _recover_segment(
    disk: Disk, fd: int, number: int, start: int, index: Index, recent: Recent
) -> Recovered:
    settle_file(disk, fd, start)
    owner = owner_of(disk, fd, number)

    def unknown(head: Head) -> bool:
        key = key_of(head.name.decode())
        value = recent.get(key)
        known = unpack(value).sequence if value is not None else index.sequence_of(key)
        return known < head.sequence

    scanner = Scanner(disk, fd, owner, verify=unknown)
    found = scanner.records(max(start, SEGMENT_HEADER))
    recovered = sort_out(disk, fd, number, owner, found, scanner.size)
    if recovered.sealed_off:
        disk.flush(fd)
    return recovered


def settle_file(disk: Disk, fd: int, start: int) -> None:
    """Make sure that what is read from `start` on is what the disk has (step 1 above)."""
    disk.flush(fd)
    disk.forget(fd, start)


def owner_of(disk: Disk, fd: int, number: int) -> bytes:
    """The owner of a segment: its header has it, and so has its first record.

    Raises `Corrupt` when the file can't be made out to be that segment, and `BadVolume`
    when only a newer dolmen reads it.
    """
    start = salvage(disk, fd, SEGMENT_HEADER + HEAD_MAX, 0)
    try:
        found, owner, _ = decode_header(start)
    except Corrupt as error:
        try:
            owner = decode_head(start, SEGMENT_HEADER).owner
        except Corrupt:
            raise Corrupt(
                f"segment {number:08x} can't be read: {error}; move the file out of the volume's "
                "folder, then run `dolmen reindex` and `dolmen replicate` to bring back what it "
                "held"
            ) from error
        _log.error("segment %08x: %s; its records say the same", number, error)
        return owner
    if found != number:
        raise Corrupt(f"segment {number:08x} says it is {found:08x}; was the file renamed?")
    return owner


def sort_out(
    disk: Disk,
    fd: int,
    number: int,
    owner: bytes,
    found: Iterable[Found | Gap],
    size: int,
    *,
    sealed: bool = False,
    take: Callable[[tuple[bytes, Entry]], None] | None = None,
) -> Recovered:
    """Tell sound from damaged and torn, and seal off what was torn.

    Of a sealed segment nothing is torn any more: what can't be read is damaged,
    every record is taken as it is, and the file is left alone. `take` is given the entries,
    which else are in what is returned; then nothing is held but what can't be read.
    """
    recovered = Recovered(number, size)
    take = take or recovered.entries.append
    arrived = disk.modified(fd)
    flushed, end_of_kept = 0, SEGMENT_HEADER
    unread: list[Found | Gap] = []
    for item in found:
        if isinstance(item, Gap) or item.sound is False:
            unread.append(item)
            continue
        flushed = max(flushed, item.head.flushed)
        end_of_kept = max(end_of_kept, item.stop)
        if item.sound or sealed:
            take(entry_of(item, number, arrived))
    torn: list[Found | Gap] = []
    for item in unread:
        if not sealed and _is_torn(item, flushed):
            torn.append(item)
            continue
        end_of_kept = max(end_of_kept, item.stop)
        if isinstance(item, Gap):
            recovered.damaged.append(item)
        else:
            take(entry_of(item, number, arrived, damaged=True))
    for item in torn:
        recovered.sealed_off = True
        if item.start >= end_of_kept:
            recovered.end = item.start
            disk.truncate(fd, item.start)
            break
        start = item.offset if isinstance(item, Found) else item.start
        disk.write(fd, [extent_head(owner, item.stop - start - HEADER_SIZE)], start)
    return recovered


def _is_torn(item: Found | Gap, flushed: int) -> bool:
    """Whether what can't be read was never on disk, as far as is known."""
    if isinstance(item, Gap):
        return item.start >= flushed
    # An extent is handed out, and passed by flushes, before its record is whole.
    return item.in_extent or item.offset >= flushed


def entry_of(
    found: Found, number: int, arrived: int, *, damaged: bool = False
) -> tuple[bytes, Entry]:
    """Key and entry of a record that lies in segment `number`."""
    head = found.head
    if found.base is not None:
        segment, offset, inner, kind, length = found.base
    else:
        segment, offset, inner = number, found.offset, len(head.metadata)
        # A damaged revision does not say of what kind: of the lowest, so that others win ties.
        kind = Kind.BLOB if head.kind == Kind.TOUCH else head.kind
        length = head.length
    entry = Entry(
        segment,
        offset,
        inner,
        length,
        head.stamp,
        head.sequence,
        kind,
        head.checksum,
        arrived,
        head.metadata,
        damaged,
    )
    return key_of(head.name.decode()), entry


def _let_be_seen(index: Index, recent: Recent, recovered: Recovered) -> None:
    latest = recovered.latest()
    with recent.change() as change:
        change.raise_sequence(max((entry.sequence for entry in latest.values()), default=0))
        # Other processes may have written these names, and merged them, since they were scanned.
        newer = change.get_many(list(latest))
        for key, entry in list(latest.items()):
            known = unpack(newer[key]).sequence if key in newer else index.sequence_of(key)
            if known >= entry.sequence:
                del latest[key]
        change.put([(key, entry.pack()) for key, entry in latest.items()])
        end = recovered.end
        change.set_segment(recovered.number, Reach(end, end, finished=True))
