"""The body of a request or of a client's response, as its reader sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dolmen.http.inflow import Inflow
from dolmen.http.problems import BodyTooLarge


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

    __slots__ = ("_at", "_inflow", "length", "whole")

    def __init__(self, whole: bytes | None = b"", inflow: Inflow | None = None) -> None:
        self.whole = whole
        self._inflow = inflow
        self._at = 0
        if inflow is not None:
            self.length = inflow.length
        else:
            self.length = len(whole or b"")

    async def read(self, limit: int) -> bytes:
        """All that is left of the body; raises TooLarge (413) when that is more than `limit`.

        A body announced as too large is refused before any of it is read.
        """
        inflow = self._inflow
        if inflow is None:
            whole = self._take()
            if len(whole) > limit:
                raise BodyTooLarge(limit)
            return whole
        if inflow.length is not None and inflow.length - self._at > limit:
            raise BodyTooLarge(limit)
        pieces, size = [], 0
        while piece := await inflow.next():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(limit)
        self._at += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        inflow = self._inflow
        if inflow is None:
            whole = self._take()
            if whole:
                yield whole
            return
        while piece := await inflow.next():
            self._at += len(piece)
            yield piece

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the body goes; returns the number of bytes written.

        Less than the buffer's length only at the end of the body, 0 after it.
        For a body of known length the socket writes straight into the buffer,
        which must not be touched or released until this returns.
        """
        inflow = self._inflow
        if inflow is not None:
            count = await inflow.fill(buffer)
            self._at += count
            return count
        whole = self.whole or b""
        count = min(len(buffer), len(whole) - self._at)
        buffer[:count] = memoryview(whole)[self._at : self._at + count]
        self._at += count
        return count

    def _take(self) -> bytes:
        whole = self.whole or b""
        at, self._at = self._at, len(whole)
        return whole[at:] if at else whole

    def __del__(self) -> None:
        if self._inflow is not None:
            self._inflow.abandon()


NO_BODY = Body()
"""The body of every message that has none."""
