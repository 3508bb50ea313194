"""Compaction: the room of what was deleted or replaced is given back.

Segments whose live share falls under a threshold are rewritten, the ones with the least
first: what is live in one is appended to the log like any other write, committed only if
the entry still refers to the old place, and flushed; then the index is flushed, and only
then the file is unlinked. Readers that have it open finish. A crash anywhere before leaves
records twice, and the later one counts.

What is live: of a blob the record with its data, or the touch that gave it its stamp; each
tombstone. A removal is in no entry: it is carried as long as an older segment may hold what
it removed, so `reindex` at any time gives the index that was. A copy that can't be read
is carried as a touch of a place that is nowhere: it answers `Corrupt`, before and after.

Read first: `pending`, `commit`, `segment`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dolmen.errors import DolmenError
from dolmen.pace import Pace
from dolmen.record import HEADER_SIZE, Kind, block_sums
from dolmen.store import Write
from dolmen.stores.volume.disk import Buffer
from dolmen.stores.volume.entry import Entry, key_of, name_of, unpack
from dolmen.stores.volume.folder import SEGMENT
from dolmen.stores.volume.pending import Move, Pending, Removal
from dolmen.stores.volume.reader import read_now
from dolmen.stores.volume.segment import Gap, Scanner

if TYPE_CHECKING:
    from dolmen.stores.volume.volume import Volume

KEY = "compaction"
"""Of the note that says how it goes."""
THRESHOLD = 0.5
"""Segments of which less than this share is live are rewritten."""
_STEP = 1 << 20
"""Bytes that are read and committed at once."""
_HEADS = 1_000
"""Records that are committed at once."""
_TRIES = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Compaction:
    """How the compaction of a volume is doing. Sizes in bytes."""

    looked: float | None = None
    """When a pass last came to its end, in seconds since 1970."""
    reclaimed: int = 0
    """In all passes ever."""
    reclaimable: int = 0
    """Dead bytes in the segments after that pass."""
    failing: str | None = None
    """Why the last pass did not come to its end."""


class Compacted(NamedTuple):
    """What a pass has done. All but `segments`, which are gone, in bytes."""

    segments: int = 0
    reclaimed: int = 0
    carried: int = 0


def compaction_in(notes: Mapping[str, bytes]) -> Compaction | None:
    """What a store's notes say; None where it was never compacted, or is no volume."""
    try:
        return Compaction(**json.loads(notes[KEY]))
    except (KeyError, ValueError, TypeError):
        return None


class Compactor:
    """Compacts an open volume, on its event loop; one pass at a time.

    `pause` sleeps for some seconds; tests give their own.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        pace: Pace | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._volume, self._catalog, self._folder = volume, volume.catalog, volume.folder
        self._pace, self._pause, self._now = pace or Pace(), pause, now
        self._sizes: dict[int, int] = {}
        self._kept: dict[int, int] = {}
        """Segments most of which must be kept, with the live bytes they had."""
        self.done = Compacted()

    async def compact(self) -> Compacted:
        """Rewrite what is worth it, and note how it went. Raises what writes raise."""
        self.done = Compacted()
        try:
            for number in await self._ask(self._victims):
                await self._rewrite(number)
        except (DolmenError, OSError) as error:
            with suppress(DolmenError):  # on the same disk: what went wrong first is raised
                await self._note(str(error))
            raise
        await self._note(None)
        return self.done

    async def _note(self, failing: str | None) -> None:
        known = compaction_in(await self._volume.notes()) or Compaction()
        live = self._catalog.live
        known = replace(
            known,
            looked=known.looked if failing else self._now(),
            reclaimed=known.reclaimed + self.done.reclaimed,
            reclaimable=sum(max(size - live.get(n, 0), 0) for n, size in self._sizes.items()),
            failing=failing,
        )
        await self._volume.note(KEY, json.dumps(asdict(known)).encode())

    def _victims(self) -> list[int]:
        """Sealed segments worth rewriting, by live bytes. In a thread."""
        assert self._volume.log is not None
        active, disk = self._volume.log.active.number, self._folder.disk
        sealed = [n for n, suffix in self._folder.numbers() if suffix == SEGMENT and n < active]
        self._sizes = {n: disk.size(self._folder.file(n, SEGMENT)) for n in sealed}
        lives = sorted((self._catalog.live.get(n, 0), n) for n in sealed)
        worth = [(live, n) for live, n in lives if live < THRESHOLD * self._sizes[n]]
        return [n for live, n in worth if self._kept.get(n) != live]

    async def _rewrite(self, number: int) -> None:
        """Carry what is live in a segment to the end of the log, and unlink it."""
        size, live = self._sizes[number], self._catalog.live
        names, removed = await self._ask(self._read_heads, number)
        removals: list[str] = []
        if number != min(self._sizes):
            removals = [name for name in removed if self._catalog.get(key_of(name)) is None]
        kept = live.get(number, 0) + sum(HEADER_SIZE + len(name) for name in removals)
        if kept >= THRESHOLD * size:
            self._kept[number] = live.get(number, 0)
            return
        for _ in range(_TRIES):  # what is touched meanwhile is moved in the next round
            await self._carry(number, names)
            if not live.get(number, 0):
                break
        else:  # a record whose head is damaged: only its entry leads to it
            await self._carry(number, await self._ask(self._referring, number))
        for start in range(0, len(removals), _HEADS):
            some = removals[start : start + _HEADS]
            await self._commit([Removal(Write(name, kind=Kind.REMOVAL)) for name in some])
        if live.get(number, 0):
            return  # something could not be moved: the file stays
        # Before the file goes: no index that a crash may bring back may refer to it.
        await self._ask(self._catalog.index.flush)
        self._volume.reader.close_file(number)
        await self._ask(self._folder.remove, [number], SEGMENT)
        self._catalog.forget([number])
        del self._sizes[number]
        segments, reclaimed, carried = self.done
        self.done = Compacted(segments + 1, reclaimed + size - kept, carried + kept)

    async def _carry(self, number: int, names: Sequence[str]) -> None:
        """Write what these names have in a segment again."""
        step: list[tuple[str, Entry]] = []
        size = 0
        for at, name in enumerate(names, 1):
            entry = self._catalog.get(key_of(name))
            used = 0 if entry is None else _used(name, entry, number)
            if entry is not None and used:
                step.append((name, entry))
                size += used
            if size >= _STEP or len(step) == _HEADS or (step and at == len(names)):
                await self._commit(await self._ask(self._read, number, step))
                if wait := self._pace.delay(2 * size):
                    await self._pause(wait)
                step, size = [], 0

    async def _commit(self, moves: Sequence[Pending]) -> None:
        answers = [self._volume.submit(move) for move in moves]
        await asyncio.gather(*answers, return_exceptions=True)
        for answer in answers:
            await answer

    def _read(self, number: int, step: list[tuple[str, Entry]]) -> list[Move]:
        """The moves of some entries, with their data. In a thread."""
        disk = self._folder.disk
        moves: list[Move] = []
        with disk.opened(self._folder.file(number, SEGMENT)) as fd:
            for name, entry in step:
                write = Write(name, kind=entry.kind, metadata=entry.metadata)
                data: Buffer | None = b""
                if entry.data[0] == number:
                    data = None if entry.damaged else read_now(disk, fd, name.encode(), entry)
                fixed = write, entry.checksum, data or b"", block_sums(data or b"")
                moves.append(Move(*fixed, expected=entry, lost=data is None))
        return moves

    def _read_heads(self, number: int) -> tuple[Sequence[str], Sequence[str]]:
        """The names of the records in a segment, and those of removals. In a thread."""
        disk = self._folder.disk
        names: dict[str, None] = {}
        removed: dict[str, None] = {}
        with disk.opened(self._folder.file(number, SEGMENT)) as fd:
            for found in Scanner(disk, fd).records(0):
                if not isinstance(found, Gap):
                    into = removed if found.head.kind == Kind.REMOVAL else names
                    into[found.head.name.decode()] = None
        return list(names), list(removed)

    def _referring(self, number: int) -> Sequence[str]:
        """Every name whose entry refers to a segment, by reading the whole index. In a thread."""
        named = ((name_of(key), unpack(value)) for key, value in self._catalog.entries())
        return [name for name, entry in named if _used(name, entry, number)]

    async def _ask(self, call: Callable[..., T], *arguments: object) -> T:
        return await self._volume.in_thread(call, *arguments)


def _used(name: str, entry: Entry, number: int) -> int:
    """How many bytes of an entry lie in a segment."""
    return sum(size for place, size in entry.usage(name.encode()) if place == number)
