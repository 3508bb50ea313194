"""Reading from a cluster: members are asked in placement order until one answers.

- What is handed out has been checked against its name (`dolmen.cluster.verify`). A copy that
  is damaged, or breaks off, is replaced by another one at the offset reached.
- "Not there" is said only when every member said so, and those that should have it said so
  again, since repair moves copies meanwhile. A tombstone is a "no" that also overrules older
  copies on others. A member that could not be asked, or whose copy is damaged, makes the
  answer `Unavailable`, never `NotFound`.
- Members with problems are asked last, or not at all (`dolmen.cluster.breaker`); behind those
  that are often late the next one is asked as well (`dolmen.cluster.hedging`).
- What is larger than `SMALL` is read when the payload is, and draws on the budget.

Read first: `dolmen.cluster.placement`, `dolmen.cluster.breaker`, `dolmen.cluster.verify`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from hashlib import sha256

from dolmen.closing import closing
from dolmen.cluster.breaker import Breaker
from dolmen.cluster.budget import Budget
from dolmen.cluster.groups import Failures, Member, in_words, stale
from dolmen.cluster.hedging import TIMED, Hedging
from dolmen.cluster.manifest import CHUNK, MANIFEST_MAX
from dolmen.cluster.merge import merge_listings
from dolmen.cluster.placement import Place, Placement
from dolmen.cluster.verify import digest_checked, is_right
from dolmen.errors import Corrupt, DolmenError, InvalidName, NotFound, Unavailable
from dolmen.names import is_object_id
from dolmen.payload import EMPTY, Bytes, Piece, Stream, read_whole
from dolmen.record import Kind
from dolmen.store import EVERYTHING, NO_CHECKSUM, Blob, BlobInfo, Listing, Range

SMALL = 262_144
"""Bytes up to which a blob is read and checked before its first byte is handed out."""
_TAIL = 131_072
"""More than a socket holds back before it asks its writer to wait."""
_Begun = tuple[Member, Blob]
"""A copy whose answer has begun."""


class Reader:
    """The reads of the contract. `before_no` is awaited before anything is called absent."""

    def __init__(
        self,
        placement: Placement,
        breaker: Breaker,
        hedging: Hedging,
        budget: Budget,
        before_no: Callable[[], Awaitable[None]],
    ) -> None:
        self._placement, self._breaker, self._hedging = placement, breaker, hedging
        self._budget, self._before_no = budget, before_no

    async def get(self, name: str) -> Blob:
        """See `BlobStore.get`."""
        failures: Failures = []
        while True:
            begun = member, blob = await self._ask(name, failures)
            info, data = blob.info, blob.payload.whole
            if data is None:
                if info.size > SMALL:
                    return Blob(info, self._later(info, 0, info.size, begun))
            elif len(name) == 64 and len(data) <= SMALL and sha256(data).hexdigest() == name:
                return blob  # the usual case, in the fewest steps
            data = await self._right(member, blob, failures)
            if data is not None:
                return Blob(info, Bytes(data))

    async def part_of(self, info: BlobInfo, byte_range: Range) -> Blob:
        """A range of a blob of which so much is known."""
        start = min(byte_range[0], info.size)
        stop = max(start, min(byte_range[1], info.size))
        if info.size > SMALL:
            return Blob(info, self._later(info, start, stop))
        blob = await self.get(info.name)  # only the whole can be checked against its name
        data = await read_whole(blob.payload) if blob.info.size == info.size else b""
        if len(data) != info.size:
            raise _changed(info)
        return Blob(blob.info, Bytes(memoryview(data)[start:stop]))

    async def whole(self, name: str, begun: _Begun | None = None) -> bytes | memoryview:
        """All of a blob in memory, checked, of the copy begun if that is good. The caller
        accounts for it.
        """
        failures: Failures = []
        while True:
            member, blob = begun or await self._ask(name, failures)
            begun = None
            data = await self._right(member, blob, failures)
            if data is not None:
                return data

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        return (await self._ask(name, [], stat=True))[1].info

    async def _right(
        self, member: Member, blob: Blob, failures: Failures
    ) -> bytes | memoryview | None:
        """The bytes of a copy; None when they are not what they should be, and that is noted."""
        try:
            if blob.payload.size > MANIFEST_MAX:
                raise Corrupt(f"its copy of {blob.info.name} has {blob.payload.size} bytes")
            data = await read_whole(blob.payload)
            if not await is_right(blob.info, data):
                raise Corrupt(f"its copy of {blob.info.name} has other content than the name says")
        except DolmenError as error:
            self._failed(member, error, failures)
            return None
        return data

    def _failed(self, member: Member, error: DolmenError, failures: Failures) -> None:
        self._breaker.failed(member, error)
        failures.append((member.name, error))

    async def _ask(
        self, name: str, failures: Failures, part: Range | None = None, *, stat: bool = False
    ) -> _Begun:
        """The first answer of the members that have not failed yet; failures are added.

        What is known of a blob comes as one without its bytes.
        """
        place = self._placement.place_of(name)
        breaker, hedging = self._breaker, self._hedging
        if hedging.gray and not (stat or part or failures or breaker.troubles):
            raced = await hedging.race(place.order, name)
            if raced is not None:
                return raced
        deleted = 0
        failed = {member for member, _ in failures} if failures else ()
        for member in self._order(place, failures):
            if member.name in failed:
                continue
            began = hedging.now()
            try:
                if member.stale is not None:
                    raise stale(member)
                if stat:
                    blob = Blob(await member.store.stat(name), EMPTY)
                else:
                    blob = await member.store.get(name, byte_range=part)
            except NotFound as absent:
                deleted = max(deleted, absent.stamp)
                breaker.failed(member, absent)
            except InvalidName:
                raise
            except DolmenError as error:
                failures.append((member.name, error))
                if member.stale is None:
                    breaker.failed(member, error, began)
            else:
                info = blob.info
                if breaker.troubles:
                    breaker.answered(member)
                if info.stamp > deleted or not deleted:
                    if not stat and info.size <= TIMED:
                        hedging.took(member, hedging.now() - began)
                    return member, blob
        if not failures:
            await self._before_no()
            raise NotFound(f"{name} is on none of the servers", stamp=deleted)
        raise Unavailable(
            f"{name} may exist, but not every server could be asked ({in_words(failures)})"
        )

    def _order(self, place: Place, failures: Failures) -> Iterator[Member]:
        """Whom to ask for a blob until one has it; `failures` are those met meanwhile."""
        troubles = self._breaker.troubles
        yield from self._breaker.reading(place.order, failures) if troubles else place.order
        if not failures:
            yield from place.again

    # What is read when the payload is

    def _later(self, info: BlobInfo, start: int, stop: int, begun: _Begun | None = None) -> Stream:
        """A part of a blob, of the copy begun if that is good."""

        def opened() -> AsyncIterator[Piece]:
            nonlocal begun
            answer, begun = begun, None
            if self._budget.is_spent(min(info.size, CHUNK)):
                answer = None  # others need its connection meanwhile
            if info.size <= CHUNK:
                return self._held(info, start, stop, answer)
            pieces = self._streamed(info, start, stop, answer)
            whole = (start, stop) == (0, info.size) and info.kind == Kind.BLOB
            if whole and is_object_id(info.name):
                return digest_checked(info.name, pieces)
            return pieces

        return Stream(stop - start, opened)

    async def _held(
        self, info: BlobInfo, start: int, stop: int, begun: _Begun | None
    ) -> AsyncIterator[Piece]:
        """A part of a blob of up to a chunk's size, of which the whole is read and checked."""
        await self._budget.take(info.size)
        try:
            data = await self.whole(info.name, begun)
            if len(data) != info.size:
                raise _changed(info)
            for piece in halves(memoryview(data)[start:stop]):
                yield piece
        finally:
            self._budget.give(info.size)

    async def _streamed(
        self, info: BlobInfo, at: int, stop: int, begun: _Begun | None
    ) -> AsyncIterator[Piece]:
        """A part of a larger blob, put there by other software: from one copy until it breaks
        off, then from another one at the offset reached.
        """
        failures: Failures = []
        await self._budget.take(SMALL)
        try:
            while at < stop:
                member, blob = begun or await self._ask(info.name, failures, (at, stop))
                begun = None
                try:
                    if not _is_same(info, blob.info):
                        raise _changed(info)
                    async with closing(aiter(blob.payload)) as pieces:
                        async for piece in pieces:
                            at += len(piece)
                            yield piece
                    if at < stop:
                        raise Unavailable(f"it ended {info.name} early")
                except DolmenError as error:
                    self._failed(member, error, failures)
        finally:
            self._budget.give(SMALL)

    # Listings

    async def list(
        self, listing: Listing = EVERYTHING, failures: Failures | None = None
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`: merged over all members, of each name what ranks highest.

        Members that fail are left out, and added to `failures`.
        """
        failures = [] if failures is None else failures
        asked = replace(listing, tombstones=True)
        listings = {
            member.name: _until_it_fails(member, asked, failures)
            for group in self._placement.groups
            for member in group.members
        }
        try:
            async for found in merge_listings(listings):
                best = max(found.values(), key=lambda info: info.rank)
                if listing.tombstones or best.kind != Kind.TOMBSTONE:
                    yield best
        finally:
            for each in listings.values():
                await each.aclose()

    def incomplete(self, failures: Failures) -> str | None:
        """Why an object may be only on members that failed to list theirs, if it may.

        Every object is on `write_copies` servers, of any group.
        """
        if len(failures) < min(group.write_copies for group in self._placement.groups):
            return None
        return f"not every server could be listed, so names may be missing ({in_words(failures)})"


def halves(data: memoryview) -> Iterator[Piece]:
    """A piece of memory and a copy of its end.

    A socket may hold the last piece for long, but no view of the memory any more.
    """
    tail = max(len(data) - _TAIL, 0)
    if tail:
        yield data[:tail]
    if data:
        yield bytes(data[tail:])


def _is_same(info: BlobInfo, other: BlobInfo) -> bool:
    """Whether two copies have the same bytes: a plain sos server has but the digest in the name."""
    checksums = {info.checksum, other.checksum}
    known = len(checksums) == 1 or (NO_CHECKSUM in checksums and is_object_id(info.name))
    return known and info.size == other.size


def _changed(info: BlobInfo) -> Unavailable:
    return Unavailable(f"{info.name} was written anew while it was read; try again")


async def _until_it_fails(
    member: Member, listing: Listing, failures: Failures
) -> AsyncGenerator[BlobInfo, None]:
    """What a member lists; that it fails is noted, and ends it."""
    try:
        if member.stale is not None:
            raise stale(member)
        async with closing(member.store.list(listing)) as infos:
            async for info in infos:
                yield info
    except DolmenError as error:
        failures.append((member.name, error))
