"""A store that is asked again when it does not answer, and that names itself when it gives up.

Everything here can be repeated without harm: questions, removals of a stamp (what the first call
removed is False then), and writes that carry a stamp. Each is tried up to `TRIES` times with pauses
that double. Listings and bulk reads go on behind the last entry that came, and so does a body that
breaks off in the middle. A store that stays away, refuses every write or refuses who asks raises
`ServerFailed` with its name. What is wrong with one blob is passed on as it is.

`write_many` is not repeated: nobody keeps what was sent. `dolmen.replication.copy` sends it again.

Read first: `dolmen.store`, `dolmen.stores.base`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from dolmen.closing import closing
from dolmen.errors import (
    BadContent,
    DolmenError,
    NotFound,
    OutcomeUnknown,
    Outdated,
    ReadOnly,
    Unauthorized,
    Unavailable,
)
from dolmen.payload import Payload, Piece
from dolmen.store import (
    EVERYTHING,
    Blob,
    BlobInfo,
    BlobStore,
    Failed,
    Listing,
    Put,
    Range,
    Write,
)
from dolmen.stores.base import Delegating

TRIES = 5
"""Attempts in a row that bring nothing before a server counts as failing."""
FIRST_PAUSE = 0.25
"""Seconds before the second attempt; doubled before each one after."""
LONGEST = 60.0
"""Seconds without any progress after which there is no further attempt."""
SKIPPED = 3
"""Names in a row that could not be read before it is the server's fault and not theirs."""

PASSING = (Unavailable, OutcomeUnknown)
"""Errors that may pass."""
_CUT = (*PASSING, BadContent)
"""Those, and a body that was cut short on its way here."""
HOPELESS = (ReadOnly, Unauthorized)
"""Errors of one call that every other one would meet as well."""

Pause = Callable[[float], Awaitable[object]]
"""Waits that many seconds: `asyncio.sleep`, or a test's own."""
A = TypeVar("A", Blob | Failed, BlobInfo | Failed)
T = TypeVar("T")


class ServerFailed(Unavailable):
    """A server failed for good: which one, and what it said last."""

    def __init__(self, server: str, error: DolmenError) -> None:
        super().__init__(f"{server}: {error}")
        self.server, self.error = server, error


class Backoff:
    """Counts attempts in a row that brought nothing, and waits between them."""

    def __init__(self, pause: Pause, longest: float = math.inf) -> None:
        self._pause, self._longest = pause, longest
        self.renew()

    def renew(self) -> None:
        """The last attempt brought something."""
        self._failed, self._since = 0, time.monotonic()

    async def again(self) -> bool:
        """Wait before another attempt and return True; False when there were enough."""
        self._failed += 1
        if self._failed >= TRIES or time.monotonic() - self._since >= self._longest:
            return False
        await self._pause(FIRST_PAUSE * 2 ** (self._failed - 1))
        return True


class Retrying(Delegating):
    """`store`, asked again. `server` is its name in errors."""

    def __init__(self, store: BlobStore, server: str, *, pause: Pause = asyncio.sleep) -> None:
        super().__init__(store.store if isinstance(store, Retrying) else store)
        self.server, self.pause = server, pause

    async def _ask(self, question: Callable[[], Awaitable[T]], *, of_blob: bool = False) -> T:
        """The answer; an error is the server's, or that of the one blob asked about."""
        backoff = Backoff(self.pause, LONGEST)
        while True:
            try:
                return await question()
            except Outdated as error:
                raise Outdated(f"{self.server}: {error}") from error
            except HOPELESS as error:
                raise ServerFailed(self.server, error) from error
            except PASSING as error:
                await self._wait(backoff, error)
            except DolmenError as error:
                if of_blob:
                    raise
                raise ServerFailed(self.server, error) from error

    async def _wait(self, backoff: Backoff, error: DolmenError) -> None:
        if not await backoff.again():
            raise ServerFailed(self.server, error) from error

    async def write(self, write: Write) -> Put:
        """Without a stamp, or with a payload read once, it is tried once."""
        if write.stamp is None or not write.payload.rereadable:
            return await self.store.write(write)
        return await self._ask(lambda: self.store.write(write), of_blob=True)

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """A range is not gone on with when its body breaks off."""
        blob = await self._ask(lambda: self.store.get(name, byte_range=byte_range), of_blob=True)
        if not byte_range:
            self._resume(blob)
        return blob

    async def stat(self, name: str) -> BlobInfo:
        return await self._ask(lambda: self.store.stat(name), of_blob=True)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """It goes on where it broke off."""
        backoff = Backoff(self.pause, LONGEST)
        last = listing.after
        while True:
            try:
                async with closing(self.store.list(replace(listing, after=last))) as infos:
                    async for info in infos:
                        last = info.name
                        yield info
                        backoff.renew()
            except PASSING as error:
                await self._wait(backoff, error)
            except DolmenError as error:
                raise ServerFailed(self.server, error) from error
            else:
                return

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        return self._many(self.store.get_many, names)

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        return self._many(self.store.verify_many, names)

    async def _many(
        self, ask: Callable[[Sequence[str]], AsyncIterator[A]], names: Sequence[str]
    ) -> AsyncIterator[A]:
        """One answer a name, going on where a stream of answers broke off.

        A name that keeps failing while others do not is answered with its error.
        """
        at = skipped = 0
        backoff = Backoff(self.pause, LONGEST)
        while at < len(names):
            trouble: DolmenError = Unavailable("it left names unanswered")
            failed: A | None = None
            try:
                async with closing(ask(names[at:])) as answers:
                    async for answer in answers:
                        if isinstance(answer, Failed) and isinstance(answer.error, _CUT):
                            failed, trouble = answer, answer.error
                            break
                        at, skipped = at + 1, 0
                        backoff.renew()
                        if isinstance(answer, Blob):
                            self._resume(answer)
                        yield answer
            except PASSING as error:
                trouble = error
            except DolmenError as error:
                raise ServerFailed(self.server, error) from error
            if at == len(names) or await backoff.again():
                continue
            skipped += 1
            if failed is None or skipped == SKIPPED:
                raise ServerFailed(self.server, trouble)
            yield failed
            at += 1
            backoff.renew()

    def _resume(self, blob: Blob) -> None:
        """Have a body read on from where it breaks off."""
        if blob.payload.whole is None:
            blob.payload = Resumed(self, blob)


class Resumed:
    """The body of a blob, read on from where it broke off; `error` says why reading it failed."""

    def __init__(self, source: Retrying, blob: Blob) -> None:
        self.size = blob.info.size
        self.whole: bytes | memoryview | None = None
        self.rereadable = True
        self.error: DolmenError | None = None
        self._source, self._info = source, blob.info
        self._first: Payload | None = blob.payload

    async def __aiter__(self) -> AsyncIterator[Piece]:
        backoff, at = Backoff(self._source.pause, LONGEST), 0
        try:
            while True:
                try:
                    payload = await self._from(at)
                    async with closing(aiter(payload)) as pieces:
                        async for piece in pieces:
                            at += len(piece)
                            backoff.renew()
                            yield piece
                except _CUT as error:
                    if not await backoff.again():
                        raise Unavailable(f"{self._source.server}: {error}") from error
                else:
                    return
        except DolmenError as error:
            self.error = error
            raise

    async def _from(self, at: int) -> Payload:
        if self._first is not None:
            payload, self._first = self._first, None
            return payload
        rest = (at, self.size) if at else None
        blob = await self._source.store.get(self._info.name, byte_range=rest)
        if blob.info.rank != self._info.rank:
            raise NotFound(f"{self._info.name} was replaced while it was read")
        return blob.payload
