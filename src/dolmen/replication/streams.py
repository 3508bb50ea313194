"""Asynchronous iterators that are closed for certain, and payloads that are watched."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from dolmen.errors import Corrupt, DolmenError
from dolmen.names import is_object_id
from dolmen.payload import Payload, Piece

T = TypeVar("T")


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an iterator at the end, if it is one that can be: a listing holds a connection."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


class Watched:
    """A streamed payload that remembers why reading it failed.

    The store that writes it only sees its body break off; with `error` the
    failure is put down to the source. With `verify` the data must have the
    digest that `name` is (where it is an object id), else reading it raises
    `Corrupt` before the last piece: sources without checksums can't be believed.
    """

    def __init__(self, payload: Payload, name: str, *, verify: bool) -> None:
        self.size = payload.size
        self.whole: bytes | memoryview | None = None
        self.rereadable = payload.rereadable
        self.error: DolmenError | None = None
        self._payload = payload
        self._name = name
        self._verify = verify and is_object_id(name)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            pieces = self._verified() if self._verify else aiter(self._payload)
            async with closing(pieces):
                async for piece in pieces:
                    yield piece
        except DolmenError as error:
            self.error = error
            raise

    async def _verified(self) -> AsyncIterator[Piece]:
        hasher = hashlib.sha256() if len(self._name) == 64 else hashlib.sha1()  # noqa: S324
        held = b""
        async for piece in self._payload:
            hasher.update(piece)
            if held:
                yield held
            held = bytes(piece)  # a piece is only valid until the next one is asked for
        if hasher.hexdigest() != self._name:
            raise Corrupt(f"the data under {self._name} does not have that digest")
        if held:
            yield held
