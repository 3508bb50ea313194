"""The body of a message on its way in: one that is here already, or one that still arrives.

The chunked transfer coding (RFC 9112, 7.1) is read strictly, its trailers are dropped. A body of
known length can be received into the reader's own buffer, past every copy.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable

from dolmen.errors import BadContent
from dolmen.http.connection import Connection, again
from dolmen.http.messages import BodyTooLarge, HTTPError

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;%b(?:=(?:%b|%b))?)*\r" % (_TOKEN, _TOKEN, _QUOTED))
_TRAILER = re.compile(rb"(%b):[\t -~\x80-\xff]*\r" % _TOKEN)
_FRAMING = (b"content-length", b"transfer-encoding")
_LINE_MAX = 4 * 1024
_SLACK = 16 * 1024
"""What sizes, extensions and trailers may take, beside 16 bytes a chunk."""


class Body:
    """Bytes that have arrived, or (`Arriving`) are still arriving with backpressure.

    `length` is the size in bytes, None when it is not known beforehand.
    `whole` is all of it when it arrived before the handler began (bodies of up
    to 64 KiB with a Content-Length do), else None: the fast path, always right
    to look at first. Each way of reading goes on where the last one stopped,
    and gives nothing after the end.

    Reading raises, on a server, HTTPError: 400 for bad chunks, 408 for a sender that
    is too slow, 413 beyond the server's limit; `BadContent` when the sender
    went away before the end. On a client, `Unavailable` or `OutcomeUnknown`.
    """

    __slots__ = ("given", "length", "whole")

    def __init__(self, whole: bytes) -> None:
        self.whole: bytes | None = whole
        self.length: int | None = len(whole)
        self.given = 0

    async def read(self, limit: int) -> bytes:
        """All that is left of the body; raises TooLarge (413) when that is more than `limit`.

        A body announced as too large is refused before any of it is read.
        """
        if self.length is not None and self.length - self.given > limit:
            raise BodyTooLarge(limit)
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(limit)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._next():
            yield piece

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the body goes; returns the number of bytes written.

        Less than the buffer's length only at the end of the body, 0 after it.
        For a body of known length the socket writes straight into the buffer,
        which must not be touched or released until this returns.
        """
        at = 0
        while at < len(buffer) and (piece := await self._next(len(buffer) - at)):
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        return at

    def close(self) -> None:
        """Read no more."""

    async def _next(self, most: int = 1 << 62) -> bytes:
        """The next piece, of at most so many bytes; b"" at the end."""
        piece = (self.whole or b"")[self.given : self.given + most]
        self.given += len(piece)
        return piece


NO_BODY = Body(b"")
"""The body of every message that has none."""


class Arriving(Body):
    """A body whose bytes a connection still receives; one reader at a time.

    `length` is None for a chunked one, of which at most `limit` bytes are taken. `left` counts what
    was not taken yet, of the chunk where there are chunks. `expects`: the sender waits to be asked.
    `finished` is called when all has been read, `given_up` when it won't be.
    What arrived before an error is given before the error is raised.
    """

    __slots__ = (
        "_connection", "_finished", "_given_up", "_limit", "_next_line", "_overhead",
        "ended", "error", "expects", "left",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        length: int | None,
        *,
        limit: int = 1 << 62,
        expects: bool = False,
        finished: Callable[[], None],
        given_up: Callable[[], None] | None = None,
    ) -> None:
        self.whole = None
        self.length = length
        self.given = 0
        self.left = length or 0
        self.ended = False
        self.expects = expects
        self.error: Exception | None = None
        self._connection = connection
        self._limit = limit
        self._finished = finished
        self._given_up = given_up
        self._next_line = "size"
        self._overhead = 0

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Body`."""
        connection, begun = self._connection, self.given
        at, size = 0, len(buffer)
        try:
            while at < size:
                if self.length is not None and self.left and self._fillable():
                    view = buffer[at : at + self.left]
                    self._ask()
                    await connection.fill(view, self._count)
                    at += len(view)
                    self._look_for_end()
                elif piece := await self._next(size - at):
                    buffer[at : at + len(piece)] = piece
                    at += len(piece)
                else:
                    break
        except BaseException as error:
            if isinstance(error, Exception):
                self.error = self.error or again(error)
            elif self.given != begun:
                self.error = BadContent("A read of this body was cancelled half way.")
                self.close()
            raise
        return at

    def _fillable(self) -> bool:
        connection = self._connection
        return not connection.held and self.error is None and not connection.transport.is_closing()

    async def _next(self, most: int = 1 << 62) -> bytes:
        connection = self._connection
        while self.error is None:
            if self.left and connection.held:
                piece = connection.take(min(most, self.left))
                self._count(len(piece))
                self._look_for_end()
                return piece
            if self.ended:
                return b""
            try:
                if self.left or not self._take_line():
                    self._ask()
                    await connection.more("body")
            except Exception as error:  # noqa: BLE001 - raised below, and whenever more is wanted
                self.error = self.error or again(connection.unreadable(error))
        raise again(self.error)

    def _ask(self) -> None:
        if self.expects:
            self.expects = False
            self._connection.send_continue()

    def _count(self, count: int) -> None:
        self.left -= count
        self.given += count

    def _look_for_end(self) -> None:
        if not self.left and self.length is not None:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._finished()

    def _take_line(self) -> bool:
        """Take a line of the chunked coding, if all of it is here.

        Raises HTTPError: 400 for bad sizes, extensions, line ends and trailers, and where those
        take too much; 413 where the body does.
        """
        connection = self._connection
        end = connection.held.find(b"\n", connection.at) + 1
        if not end:
            if connection.unread() > _LINE_MAX:
                raise HTTPError(400, "A line of the chunked body is too long.")
            return False
        line = connection.take(end - connection.at)[:-1]
        if self._next_line == "end of chunk":
            if line != b"\r":
                raise HTTPError(400, "A chunk is longer than its size says.")
            self._next_line = "size"
            return True
        self._overhead += len(line)
        if self._overhead > _SLACK:
            raise HTTPError(400, "The chunked body has too many extensions or trailers.")
        if self._next_line == "size":
            size = _SIZE.fullmatch(line)
            if size is None:
                raise HTTPError(400, "A chunk's size is malformed.")
            self.left = int(size[1], 16)
            self._overhead -= 16
            self._next_line = "end of chunk" if self.left else "trailer"
            if self.given + self.left > self._limit:
                raise BodyTooLarge(self._limit)
        elif line == b"\r":
            self._end()
        else:
            trailer = _TRAILER.fullmatch(line)
            if trailer is None or trailer[1].lower() in _FRAMING:
                raise HTTPError(400, "A trailer of the chunked body is malformed.")
        return True

    def close(self) -> None:
        """Read no more; the connection is closed where there was more to read."""
        if self._given_up is not None and not self.ended:
            self._given_up()

    def __del__(self) -> None:
        loop = self._connection.loop
        if self._given_up is not None and not self.ended and not loop.is_closed():
            loop.call_soon_threadsafe(self._given_up)  # this may be any thread
