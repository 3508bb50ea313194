"""Copying differences: batches of names, read from one store in a stream that the other writes.

Nothing of a batch is kept in memory but its names. Where only stamp or metadata differ, a touch
goes in the same stream; a touch that is refused is sent whole. Every write carries its stamp, so
what is in doubt is simply sent again. What is wrong with one blob is reported and passed over;
a server that fails ends the run (`ServerFailed`).

Read first: `dolmen.stores.retrying`, `dolmen.replication.compare`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.cluster.verify import digest_checked
from dolmen.errors import Corrupt, DolmenError, Full, NotFound, TooLarge, Unavailable
from dolmen.names import checksum_of, is_object_id, matches_name
from dolmen.pace import Pace
from dolmen.payload import Payload, Piece, Stream
from dolmen.record import Kind
from dolmen.replication.compare import Difference
from dolmen.replication.report import Report
from dolmen.store import Blob, BlobInfo, Failed, Put, Write
from dolmen.stores.retrying import HOPELESS, PASSING, Backoff, Resumed, Retrying, ServerFailed


class _Sent(NamedTuple):
    """What the destination has not answered for yet."""

    info: BlobInfo
    body: Payload | None
    """None for a touch."""

    @property
    def unread(self) -> DolmenError | None:
        """Why the source could not give the body to its end."""
        return self.body.error if isinstance(self.body, Resumed) else None


@dataclass(slots=True)
class Copier:
    """Brings differences from one store to another, and keeps the report."""

    source: Retrying
    destination: Retrying
    report: Report
    pace: Pace
    full: Full | None = None
    barren: bool = False
    """The last batch that was given up had brought nothing at all."""

    async def copy(self, differences: Sequence[Difference]) -> Sequence[str]:
        """Bring all of these; returns the names refused, which are in the report.

        Raises `ServerFailed`.
        """
        batch = _Batch(self, {each.info.name: each for each in differences})
        await batch.run()
        return batch.refused


@dataclass(slots=True)
class _Batch:
    """Passes over the names that still wait, until none does."""

    copier: Copier
    waiting: dict[str, Difference]
    refused: list[str] = field(default_factory=list)
    sent: deque[_Sent] = field(default_factory=deque)
    error: DolmenError | None = None
    """Why something waits on after this pass."""
    broke: bool = False
    """The whole stream failed, not just names in it."""

    async def run(self) -> None:
        copier, total = self.copier, len(self.waiting)
        backoff = Backoff(copier.destination.pause)
        while self.waiting:
            if copier.full:
                self._refuse_what_needs_room(copier.full)
                if not self.waiting:
                    return
            before, self.error, self.broke = dict(self.waiting), None, False
            await self._pass()
            if isinstance(self.error, HOPELESS):
                raise ServerFailed(copier.destination.server, self.error)
            if len(self.waiting) < len(before):
                backoff.renew()
                copier.barren = False
            if self.waiting == before and self.error is None:
                self.error = Unavailable("it left names unanswered")
            if self.waiting and self.error and not await backoff.again():
                self._give_up(self.error, barren=len(self.waiting) == total)

    async def _pass(self) -> None:
        """Send everything that waits, once."""
        self.sent.clear()
        failed: list[ServerFailed] = []
        try:
            async with (
                closing(self._writes(failed)) as writes,
                closing(self.copier.destination.write_many(writes)) as answers,
            ):
                async for answer in answers:
                    self._answered(self.sent.popleft(), answer)
        except DolmenError as error:  # the whole stream broke off
            self._broke_off(error)
        if failed:  # the source did; what came before is written all the same
            raise failed[0]

    async def _writes(self, failed: list[ServerFailed]) -> AsyncIterator[Write]:
        """Touches, then what waits as the source has it now."""
        source, pace, sent = self.copier.source, self.copier.pace, self.sent
        alike = source.capabilities.stamps and self.copier.destination.capabilities.stamps
        names = []
        for name, (info, touch) in [*self.waiting.items()]:
            if touch:
                self.sent.append(_Sent(info, None))
                yield Write.touch(
                    name, stamp=info.stamp, checksum=info.checksum, metadata=info.metadata
                )
            else:
                names.append(name)
        try:
            async with closing(source.get_many(names)) as answers:
                async for got in answers:
                    if isinstance(got, Failed):
                        self._unreadable(got.name, got.error)
                    elif (blob := got if alike else self._usable(got)) is not None:
                        if wait := pace.delay(blob.info.size):
                            await source.pause(wait)
                        sent.append(_Sent(blob.info, got.payload))
                        yield Write.copy(blob)
        except ServerFailed as error:
            failed.append(error)

    def _usable(self, blob: Blob) -> Blob | None:
        """What the source gave, if the destination can be given it; otherwise it is settled."""
        name, kind = blob.info.name, blob.info.kind
        try:
            if not self.copier.source.capabilities.stamps:
                blob = _checked(blob)
            if self.copier.destination.capabilities.stamps or kind == Kind.BLOB:
                return blob
            if kind == Kind.TOMBSTONE:
                raise NotFound(f"{name} was deleted since it was compared")
            raise TooLarge(f"{name} is stored in chunks, which a plain sos server can't join")
        except DolmenError as error:
            self._unreadable(name, error)
            return None

    def _broke_off(self, error: DolmenError) -> None:
        for name, unread in ((each.info.name, each.unread) for each in self.sent):
            if unread:
                self._unreadable(name, unread)
                return
        if isinstance(error, (*PASSING, *HOPELESS)) or not self.sent:
            self.error, self.broke = error, True
        else:
            self._failed(self.sent[0].info.name, error)

    def _answered(self, sent: _Sent, answer: Put | Failed) -> None:
        info = sent.info
        if isinstance(answer, Put):
            self.waiting.pop(info.name, None)
            self.copier.report.wrote(info, answer.outcome)
        elif sent.unread:
            self._unreadable(info.name, sent.unread)
        elif sent.body is None and not isinstance(answer.error, HOPELESS):
            self.waiting[info.name] = Difference(info)
        else:
            self._failed(info.name, answer.error)

    def _failed(self, name: str, error: DolmenError) -> None:
        """The destination did not take one blob: it waits on, or is refused."""
        if isinstance(error, (*PASSING, *HOPELESS)):
            if not isinstance(self.error, HOPELESS):
                self.error = error
            return
        if isinstance(error, Full):
            self.copier.full = error
        self._refuse(name, error)

    def _unreadable(self, name: str, error: DolmenError) -> None:
        """The source could not give one blob, after all attempts."""
        if isinstance(error, NotFound):
            self.waiting.pop(name, None)
            self.copier.report.vanished += 1
        else:
            self._refuse(name, error)

    def _refuse(self, name: str, error: DolmenError) -> None:
        if self.waiting.pop(name, None) is not None:
            self.refused.append(name)
            self.copier.report.refuse(name, error)

    def _give_up(self, error: DolmenError, *, barren: bool) -> None:
        """Refuse what still waits after many passes, or end the run.

        Names that keep failing while others go through are their own fault; two batches that
        brought nothing, or a stream that keeps breaking off, are the server's.
        """
        if self.broke or (barren and self.copier.barren):
            raise ServerFailed(self.copier.destination.server, error)
        self.copier.barren = barren
        for name in [*self.waiting]:
            self._refuse(name, error)

    def _refuse_what_needs_room(self, full: Full) -> None:
        """A full store still takes deletes, which give it room again."""
        for name in [n for n, each in self.waiting.items() if each.info.kind != Kind.TOMBSTONE]:
            self._refuse(name, full)


def _checked(blob: Blob) -> Blob:
    """A blob of a store without checksums; raises `Corrupt` if it is not what its name says.

    A body that is streamed is hashed on its way, and breaks off before its last piece.
    """
    name, body = blob.info.name, blob.payload
    if body.whole is None:
        if is_object_id(name):
            blob = Blob(blob.info, Stream(body.size, lambda: _hashed(name, body)))
        return blob
    if not matches_name(name, body.whole):
        raise Corrupt(f"the data under {name} does not have that digest")
    return Blob(replace(blob.info, checksum=checksum_of(body.whole)), body)


async def _hashed(name: str, body: Payload) -> AsyncIterator[Piece]:
    try:
        async with closing(digest_checked(name, aiter(body))) as pieces:
            async for piece in pieces:
                yield piece
    except Corrupt as error:
        if isinstance(body, Resumed):
            body.error = error
        raise
