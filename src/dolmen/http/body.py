"""The body of a message on its way in: `Body` is the reader's side, `BodyStream` the connection's.

A stream holds about `HIGH_WATER` bytes before it stops the sender. A body of known length can be
received into the reader's own buffer, past every copy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from dolmen.errors import BadContent
from dolmen.http.chunked import ChunkDecoder
from dolmen.http.problems import BodyTooLarge, HTTPError

HIGH_WATER = 64 * 1024


class Body:
    """Bytes that have arrived, or are still arriving with backpressure.

    `length` is the size in bytes, None when it is not known beforehand.
    `whole` is all of it when it arrived before the handler began (bodies of up
    to 64 KiB with a Content-Length do), else None: the fast path, always right
    to look at first. Each way of reading goes on where the last one stopped,
    and gives nothing after the end.

    Reading raises, on a server, HTTPError: 400 for bad chunks, 408 for a sender that
    is too slow, 413 beyond the server's limit; `BadContent` when the sender
    went away before the end. On a client, `Unavailable` or `OutcomeUnknown`.
    """

    __slots__ = ("_at", "_stream", "length", "whole")

    def __init__(self, whole: bytes | None = b"", stream: BodyStream | None = None) -> None:
        self.whole = whole
        self._stream = stream
        self._at = 0
        self.length = len(whole or b"") if stream is None else stream.length

    async def read(self, limit: int) -> bytes:
        """All that is left of the body; raises TooLarge (413) when that is more than `limit`.

        A body announced as too large is refused before any of it is read.
        """
        if self.length is not None and self.length - self._at > limit:
            raise BodyTooLarge(limit)
        if self._stream is None:
            whole, at = self.whole or b"", self._at
            self._at = len(whole)
            return whole[at:] if at else whole
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(limit)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._stream
        if stream is None:
            if rest := await self.read(self.length or 0):
                yield rest
            return
        while piece := await stream.next():
            self._at += len(piece)
            yield piece

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the body goes; returns the number of bytes written.

        Less than the buffer's length only at the end of the body, 0 after it.
        For a body of known length the socket writes straight into the buffer,
        which must not be touched or released until this returns.
        """
        if self._stream is not None:
            count = await self._stream.fill(buffer)
        else:
            piece = memoryview(self.whole or b"")[self._at : self._at + len(buffer)]
            count = len(piece)
            buffer[:count] = piece
        self._at += count
        return count

    def __del__(self) -> None:
        if self._stream is not None:
            self._stream.abandon()


NO_BODY = Body()
"""The body of every message that has none."""


class Source(Protocol):
    """What a stream needs of the connection its bytes come from."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the connection."""

    def want(self) -> None:
        """Read on: the reader has nothing left."""

    def pause(self) -> None:
        """Stop reading."""

    def fill(self, stream: BodyStream, view: memoryview) -> None:
        """Let the socket write into `view`, and report to `stream.filled`."""

    def stop_filling(self) -> None:
        """Take the view away from the socket; reading stays paused."""

    def abandon(self, stream: BodyStream) -> None:
        """Nobody will read the rest. May be called on any thread."""


class BodyStream:
    """One body's bytes between a connection and its reader; one reader at a time.

    `length` is None for a chunked body. `remaining` counts what has not come
    out of the socket yet of a body with a length. Whatever arrived before an
    error is still given before the error is raised.
    """

    __slots__ = (
        "_decoder", "_filling", "_held", "_limit", "_pieces", "_source",
        "ended", "error", "length", "remaining", "total", "waiter",
    )  # fmt: skip

    def __init__(self, source: Source, length: int | None, limit: int) -> None:
        self._source = source
        self.length = length
        self.remaining = 0 if length is None else length
        self._decoder = ChunkDecoder() if length is None else None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self.total = 0
        self._limit = limit
        self._filling = 0
        self.ended = length == 0
        self.error: Exception | None = None
        self.waiter: asyncio.Future[None] | None = None

    # The connection's side.

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the socket; returns those beyond the end of the body."""
        if self._decoder is None:
            rest = data[self.remaining :]
            if rest:
                data = data[: self.remaining]
            self.remaining -= len(data)
            self.ended = not self.remaining
            pieces = [data] if data and self.error is None else []
        elif self.error is not None:
            return b""
        else:
            try:
                pieces, rest = self._decoder.feed(data)
            except HTTPError as error:
                self.fail(error)
                return b""
        for piece in pieces:
            self._held += len(piece)
            self.total += len(piece)
        self._pieces += pieces
        if self._decoder is not None:
            if self.total > self._limit:
                self.fail(BodyTooLarge(self._limit))
                return b""
            self.ended = self._decoder.ended
        if self._held > HIGH_WATER and not self.ended:
            self._source.pause()
        self._wake()
        return rest

    def filled(self, count: int) -> bool:
        """Note bytes the socket wrote into the reader's buffer; True when it is full."""
        self.remaining -= count
        self._filling -= count
        self.ended = not self.remaining
        if self._filling:
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
        self._source.stop_filling()
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
            self._source.want()
            await self._wait()
        piece = self._pieces.popleft()
        self._held -= len(piece)
        return piece

    async def fill(self, buffer: memoryview) -> int:
        """Fill `buffer`, as far as the body goes; returns the number of bytes written."""
        at, size = 0, len(buffer)
        while at < size:
            if self._decoder is None and not self._pieces and not self.ended and not self.error:
                at += await self._fill(buffer[at : at + self.remaining])
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

    async def _fill(self, view: memoryview) -> int:
        """Let the socket fill `view`; returns its length, or 0 where the body failed before."""
        self._filling = len(view)
        self._source.fill(self, view)
        try:
            await self._wait()
        except BaseException:
            self.fail(BadContent("A read of this body was cancelled half way."))
            self._source.abandon(self)
            raise
        finally:
            self._source.stop_filling()
        return 0 if self._filling else len(view)

    async def _wait(self) -> None:
        if self.waiter is not None:
            raise RuntimeError("a body has one reader at a time")
        self.waiter = self._source.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def abandon(self) -> None:
        """The reader is gone."""
        if not self.ended and self.error is None:
            self._source.abandon(self)
