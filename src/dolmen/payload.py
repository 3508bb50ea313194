"""Payloads: the bytes of a blob, as something that can be read again.

A put may have to send its bytes to a second server after the first failed, so
whoever gives a payload promises that it can be read from the start more than
once, where `rereadable` says so. Every payload knows its size beforehand.

Pieces are buffers (`bytes` or `memoryview`) of any length but zero. A piece stays as it
is for as long as anybody holds it or a view of it: a thread may go on with it and a
socket send it later, without a copy. Who gives pieces never writes to their memory
before (`dolmen.buffers` sees to that), and who takes them never does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol, runtime_checkable

from dolmen.buffers import Buffers
from dolmen.errors import BadContent

_FROM_HEAP = 1 << 20
CHUNKS = Buffers(4 << 20, spare=6)
"""Memory for chunks of large objects, wherever they come from."""

Piece = bytes | bytearray | memoryview


@runtime_checkable
class Payload(Protocol):
    """The bytes of one blob. `size` is in bytes."""

    size: int
    whole: bytes | memoryview | None
    """All the bytes, where they are in memory anyway; otherwise None."""
    rereadable: bool

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Read from the start, piece by piece."""
        ...


class Bytes:
    """A payload in memory."""

    __slots__ = ("size", "whole")
    rereadable = True

    def __init__(self, data: bytes | memoryview) -> None:
        self.whole: bytes | memoryview | None = data
        self.size = len(data)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self.size:
            assert self.whole is not None
            yield self.whole


EMPTY: Payload = Bytes(b"")


class Stream:
    """A payload that is read from elsewhere: a file, a socket, another store.

    `opened` is called for every reading and returns the pieces from the start.
    With `rereadable=False` a second reading raises `BadContent`. Pieces that
    add up to less or more than `size` raise `BadContent`, never pass silently.
    `fill`, where what is read knows how, puts the bytes that come next straight into
    a buffer and returns their number, 0 at the end.
    """

    __slots__ = ("_opened", "_read", "fill", "rereadable", "size", "whole")

    def __init__(
        self,
        size: int,
        opened: Callable[[], AsyncIterator[Piece]],
        *,
        rereadable: bool = True,
        fill: Callable[[memoryview], Awaitable[int]] | None = None,
    ) -> None:
        self.size = size
        self.fill = fill
        self.whole: bytes | memoryview | None = None
        self.rereadable = rereadable
        self._opened = opened
        self._read = False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self._read and not self.rereadable:
            raise BadContent("this payload can be read only once, and was read before")
        self._read = True
        got = 0
        pieces = self._opened()
        try:
            async for piece in pieces:
                got += len(piece)
                if got > self.size:
                    break
                if piece:
                    yield piece
        finally:
            # Given up or too long: the file or socket behind it is let go of now, not some day.
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        if got != self.size:
            came = f"{got} or more came" if got > self.size else f"only {got} came"
            raise BadContent(f"{self.size} bytes were announced, but {came}")


async def to_the_end(payload: Payload) -> AsyncIterator[Piece]:
    """The pieces, the last one only when the payload has ended well.

    A payload may fail after its last byte; a server it is sent to must not have all of it then.
    """
    held: Piece | None = None
    async for piece in payload:
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


async def read_whole(payload: Payload) -> bytes | memoryview:
    """All bytes of a payload in memory. For payloads known to be small."""
    if payload.whole is not None:
        return payload.whole
    size = payload.size
    chunk = _FROM_HEAP < size <= CHUNKS.size
    data = CHUNKS.take()[:size] if chunk else memoryview(bytearray(size))
    at = 0
    if isinstance(payload, Stream) and payload.fill is not None:
        while at < size:
            got = await payload.fill(data[at:])
            if not got:
                raise BadContent(f"{size} bytes were announced, but only {at} came")
            at += got
        return data
    async for piece in payload:
        data[at : at + len(piece)] = piece
        at += len(piece)
    return data[:at]
