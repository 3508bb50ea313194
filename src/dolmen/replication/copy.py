"""Copying: batches of names, read from one store in a stream that the other writes.

Nothing of a batch is kept in memory but its names: the destination draws the
blobs from the source one after the other. All that is written carries its stamp,
so whatever is in doubt is simply sent again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dolmen.closing import closing
from dolmen.cluster.verify import verified
from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    Full,
    NotFound,
    ReadOnly,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from dolmen.names import checksum_of
from dolmen.pace import Pace
from dolmen.record import Kind
from dolmen.replication.compare import Difference
from dolmen.replication.patience import PASSING, Patience, Pause, Side, Stopped
from dolmen.replication.report import Report
from dolmen.replication.watched import Watched
from dolmen.store import Blob, BlobInfo, BlobStore, Capabilities, Failed, Outcome, Put, Write

TOUCHES = 64
"""Touches under way at once."""

_HOPELESS = (ReadOnly, Unauthorized)
"""Errors of one blob that every other one would meet as well."""


class Source(Protocol):
    """What is copied from: as much of a store as that takes."""

    capabilities: Capabilities

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """As `BlobStore.get_many`."""
        ...


@dataclass(slots=True)
class _Attempt:
    """One pass over the names of a batch that still wait."""

    waiting: dict[str, BlobInfo]
    refused: list[str]
    sent: deque[Blob] = field(default_factory=deque)
    """What the destination has not answered for yet, in the order it was sent."""
    error: DolmenError = field(default_factory=lambda: Unavailable("a store left names unanswered"))
    side: Side = "destination"
    broke: bool = False
    """A whole stream failed, not just names in it."""

    def trouble(self, error: DolmenError, side: Side, *, broke: bool = False) -> None:
        """Note why something waits on."""
        if not isinstance(self.error, _HOPELESS):
            self.error, self.side = error, side
        self.broke = self.broke or broke


def _reading_error(blob: Blob) -> DolmenError | None:
    return blob.payload.error if isinstance(blob.payload, Watched) else None


class Copier:
    """Brings batches of differences from one store to another, and keeps the report."""

    def __init__(
        self,
        source: Source,
        destination: BlobStore,
        report: Report,
        pace: Pace,
        pause: Pause,
    ) -> None:
        self._source = source
        self._destination = destination
        self._report = report
        self._pace, self._pause = pace, pause
        self._full: Full | None = None
        self._barren = False  # the last batch that was given up had brought nothing at all

    async def bring(self, differences: Sequence[Difference]) -> list[str]:
        """Touch or copy every one of these; returns the names refused, which are in the report.

        Raises `Stopped` when a server fails.
        """
        refused: list[str] = []
        copies = [difference.info for difference in differences if not difference.touch]
        copies += await self._touch([each.info for each in differences if each.touch])
        waiting = {info.name: info for info in copies}
        patience = Patience(self._pause)
        while waiting:
            if self._full:
                self._refuse_what_needs_room(waiting, refused, self._full)
            before = len(waiting)
            attempt = _Attempt(waiting, refused)
            await self._copy(attempt)
            if isinstance(attempt.error, _HOPELESS):
                raise Stopped(attempt.error, attempt.side)
            if len(waiting) < before:
                patience.renew()
                self._barren = False
            if waiting and not await patience.again():
                self._give_up(attempt, barren=len(waiting) == len(copies))
        return refused

    async def _touch(self, infos: Sequence[BlobInfo]) -> list[BlobInfo]:
        """Raise stamps without sending data; returns those for which that did not do."""
        undone: list[BlobInfo] = []
        for at in range(0, len(infos), TOUCHES):
            some = infos[at : at + TOUCHES]
            done = await asyncio.gather(*map(self._touch_one, some))
            undone += [info for info, did in zip(some, done, strict=True) if not did]
        return undone

    async def _touch_one(self, info: BlobInfo) -> bool:
        try:
            put = await self._destination.write(
                Write.touch(
                    info.name, stamp=info.stamp, checksum=info.checksum, metadata=info.metadata
                )
            )
        except DolmenError:
            return False  # copying meets the same trouble, and deals with it
        self._report.touched += put.outcome is Outcome.UNCHANGED
        return True

    async def _copy(self, attempt: _Attempt) -> None:
        """Send everything that waits, once."""
        sent = attempt.sent
        try:
            async with (
                closing(self._read(attempt)) as blobs,
                closing(self._destination.write_many(blobs)) as answers,
            ):
                async for answer in answers:
                    self._answered(attempt, sent.popleft(), answer)
        except DolmenError as error:  # the whole stream broke off
            unread = [blob for blob in sent if _reading_error(blob)]
            if unread:
                self._answered(attempt, unread[0], Failed(unread[0].info.name, error))
            elif isinstance(error, PASSING) or not sent:
                attempt.trouble(error, "destination", broke=True)
            else:
                self._failed(attempt, sent[0].info.name, error, "destination")

    async def _read(self, attempt: _Attempt) -> AsyncIterator[Write]:
        """What waits, as the source has it now."""
        stamped = self._source.capabilities.stamps
        keeps_all = self._destination.capabilities.stamps
        try:
            async with closing(self._source.get_many(list(attempt.waiting))) as answers:
                async for answer in answers:
                    if isinstance(answer, Failed):
                        self._failed(attempt, answer.name, answer.error, "source")
                        continue
                    blob = await self._believed(answer) if not stamped else answer
                    if isinstance(blob, Failed):
                        self._failed(attempt, blob.name, blob.error, "source")
                        continue
                    if not keeps_all and blob.info.kind != Kind.BLOB:
                        self._pass_over(attempt, blob.info)
                        continue
                    if blob.payload.whole is None:
                        blob.payload = Watched(blob.payload)
                    if wait := self._pace.delay(blob.info.size):
                        await self._pause(wait)
                    attempt.sent.append(blob)
                    yield Write.copy(blob)
        except DolmenError as error:  # what came before is written all the same
            attempt.trouble(error, "source", broke=True)

    def _pass_over(self, attempt: _Attempt, info: BlobInfo) -> None:
        """Leave out what a destination without stamps and kinds would take for something else."""
        if info.kind == Kind.TOMBSTONE:  # deleted since it was compared
            del attempt.waiting[info.name]
            self._report.vanished += 1
        else:
            why = TooLarge(f"{info.name} is stored in chunks, which a plain sos server can't join")
            self._failed(attempt, info.name, why, "destination")

    async def _believed(self, blob: Blob) -> Blob | Failed:
        """What a source without checksums gave, if it is what its name says it is."""
        name = blob.info.name
        try:
            checked = await verified(blob)
        except DolmenError as error:
            return Failed(name, error)
        if checked is None:
            return Failed(name, Corrupt(f"the data under {name} does not have that digest"))
        if checked.payload.whole is not None:
            checked.info.checksum = checksum_of(checked.payload.whole)
        return checked

    def _answered(self, attempt: _Attempt, blob: Blob, answer: Put | Failed) -> None:
        info = blob.info
        if isinstance(answer, Failed):
            error = _reading_error(blob)
            self._failed(
                attempt,
                info.name,
                error or answer.error,
                "source" if error else "destination",
            )
            return
        attempt.waiting.pop(info.name, None)
        if answer.outcome is Outcome.UNCHANGED:
            self._report.touched += 1
        elif answer.outcome is Outcome.CREATED and info.kind == Kind.TOMBSTONE:
            self._report.tombstones += 1
        elif answer.outcome is Outcome.CREATED:
            self._report.copied += 1
            self._report.bytes += info.size

    def _failed(self, attempt: _Attempt, name: str, error: DolmenError, side: Side) -> None:
        """One blob did not go: leave it waiting, or settle it."""
        cut = isinstance(error, BadContent) and side == "source"
        if cut or isinstance(error, PASSING + _HOPELESS):
            attempt.trouble(error, side)
            return
        attempt.waiting.pop(name, None)
        if isinstance(error, NotFound) and side == "source":
            self._report.vanished += 1
            return
        if isinstance(error, Full) and side == "destination":
            self._full = error
        self._report.refuse(name, error)
        attempt.refused.append(name)

    def _give_up(self, attempt: _Attempt, *, barren: bool) -> None:
        """What still waits after many attempts is refused, or the run ends with `Stopped`.

        Names that keep failing while others go through are their own fault; two
        batches that brought nothing, or a stream that keeps breaking off, the server's.
        """
        if attempt.broke or (barren and self._barren):
            raise Stopped(attempt.error, attempt.side)
        self._barren = barren
        for name in attempt.waiting:
            self._report.refuse(name, attempt.error)
        attempt.refused += attempt.waiting
        attempt.waiting.clear()

    def _refuse_what_needs_room(
        self, waiting: dict[str, BlobInfo], refused: list[str], full: Full
    ) -> None:
        """A full store still takes deletes, and they are what gives it room again."""
        for name in [name for name, info in waiting.items() if info.kind != Kind.TOMBSTONE]:
            del waiting[name]
            self._report.refuse(name, full)
            refused.append(name)
