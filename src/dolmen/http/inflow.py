"""A body on its way in: what has arrived, who waits for it, and the brake on its sender."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from dolmen.errors import BadContent
from dolmen.http.chunked import BadChunk, ChunkDecoder
from dolmen.http.problems import BodyTooLarge, HTTPError

if TYPE_CHECKING:
    from dolmen.http.wire import Wire

HIGH_WATER = 64 * 1024


class Inflow:
    """One body's bytes between the connection and its reader; one reader at a time.

    `length` is None for a chunked body. `remaining` counts what has not come
    out of the socket yet of a body with a length. Whatever arrived before an
    error is still given before the error is raised.
    """

    __slots__ = (
        "_decoder", "_direct_left", "_held", "_limit", "_pieces", "_source", "_total",
        "ended", "error", "length", "remaining", "waiter",
    )  # fmt: skip

    def __init__(self, source: Wire, length: int | None, limit: int) -> None:
        self._source = source
        self.length = length
        self.remaining = 0 if length is None else length
        self._decoder = ChunkDecoder() if length is None else None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._total = 0
        self._limit = limit
        self._direct_left = 0
        self.ended = length == 0
        self.error: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None

    # The connection's side.

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the socket; returns those beyond the end of the body."""
        decoder = self._decoder
        if decoder is None:
            have = len(data)
            rest = b""
            if have > self.remaining:
                data, rest = data[: self.remaining], data[self.remaining :]
                have = self.remaining
            self.remaining -= have
            self.ended = self.remaining == 0
            if self.error is None and have:
                self._pieces.append(data)
                self._held += have
        else:
            if self.error is not None:
                return b""
            try:
                pieces, rest = decoder.feed(data)
            except BadChunk as error:
                self.fail(HTTPError(400, str(error)))
                return b""
            for piece in pieces:
                self._pieces.append(piece)
                self._held += len(piece)
                self._total += len(piece)
            if self._total > self._limit:
                self.fail(BodyTooLarge(self._limit))
                return b""
            self.ended = decoder.ended
        if self._held > HIGH_WATER and not self.ended:
            self._source.pause()
        self._wake()
        return rest

    def filled(self, count: int) -> bool:
        """Note bytes the socket wrote into the reader's buffer; True when it is full."""
        self.remaining -= count
        self._direct_left -= count
        self.ended = self.remaining == 0
        if self._direct_left:
            return False
        self._wake()
        return True

    def fail(self, error: Exception) -> None:
        """End the body with an error, unless it has ended already."""
        if not self.ended and self.error is None:
            self.error = error
            self._wake()

    def discard(self) -> None:
        """Throw away what is held and what still comes; who still reads gets an error."""
        self._source.stop_direct()
        self._pieces.clear()
        self._held = 0
        self.error = self.error or HTTPError(400, "The request has already been answered.")
        self._wake()

    def _wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The reader's side.

    async def next(self) -> bytes:
        """The next piece, or b"" at the end of the body."""
        while not self._pieces:
            if self.error is not None:
                raise self.error
            if self.ended:
                return b""
            await self._wait()
        piece = self._pieces.popleft()
        self._held -= len(piece)
        return piece

    async def fill(self, buffer: memoryview) -> int:
        """Fill `buffer`, as far as the body goes; returns the number of bytes written."""
        at, size = 0, len(buffer)
        while at < size:
            if self._decoder is None and not self._pieces and not self.ended and not self.error:
                take = min(size - at, self.remaining)
                self._direct_left = take
                self._source.fill_direct(self, buffer[at : at + take])
                try:
                    await self._wait(direct=True)
                except BaseException:
                    self.fail(BadContent("A read of this body was given up half way."))
                    self._source.abandon(self)
                    raise
                finally:
                    self._source.stop_direct()
                if not self._direct_left:
                    at += take
                continue
            piece = await self.next()
            if not piece:
                break
            take = min(len(piece), size - at)
            buffer[at : at + take] = piece[:take]
            at += take
            if take < len(piece):
                self._pieces.appendleft(piece[take:])
                self._held += len(piece) - take
        return at

    async def _wait(self, *, direct: bool = False) -> None:
        if self.waiter is not None:
            raise RuntimeError("a body has one reader at a time")
        self.waiter = waiter = self._source.loop.create_future()
        try:
            if not direct:
                self._source.want()
            await waiter
        finally:
            self.waiter = None

    def abandon(self) -> None:
        """Tell the connection that the reader is gone."""
        if not self.ended and self.error is None:
            self._source.abandon(self)
