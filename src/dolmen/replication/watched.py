"""A payload that remembers why reading it failed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dolmen.closing import closing
from dolmen.errors import DolmenError
from dolmen.payload import Payload, Piece


class Watched:
    """A streamed payload that remembers why reading it failed.

    The store that writes it only sees its body break off; `error` tells that it
    was the source.
    """

    def __init__(self, payload: Payload) -> None:
        self.size = payload.size
        self.whole: bytes | memoryview | None = None
        self.rereadable = payload.rereadable
        self.error: DolmenError | None = None
        self._payload = payload

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            async with closing(aiter(self._payload)) as pieces:
                async for piece in pieces:
                    yield piece
        except DolmenError as error:
            self.error = error
            raise
