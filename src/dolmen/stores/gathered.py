"""Pieces of any length, put together as far as whoever takes them apart needs."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dolmen.payload import Piece


class Gathered:
    """What has come of a stream and was not taken yet."""

    def __init__(self, pieces: AsyncIterator[Piece]) -> None:
        self._pieces = pieces
        self._buffer = b""
        self._at = 0
        self._came = 0

    @property
    def held(self) -> int:
        """Bytes that have come and were not taken."""
        return len(self._buffer) - self._at

    @property
    def passed(self) -> int:
        """Bytes of the stream that were taken."""
        return self._came - self.held

    @property
    def ahead(self) -> memoryview:
        """What is held."""
        return memoryview(self._buffer)[self._at :]

    async def have(self, wanted: int) -> bool:
        """Hold so many bytes; False when the stream ends before."""
        held = self.held
        if held >= wanted:
            return True
        parts: list[Piece] = [self.ahead] if held else []
        while held < wanted:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._came += len(piece)
            held += len(piece)
            parts.append(piece)
        self._buffer = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        self._at = 0
        return held >= wanted

    def take(self, length: int) -> bytes:
        """Take so many bytes, which are there."""
        at = self._at
        self._at = at + length
        return self._buffer[at : at + length]

    def find(self, what: bytes) -> int:
        """Where these bytes are in what is held, or -1."""
        found = self._buffer.find(what, self._at)
        return found if found < 0 else found - self._at
