"""An upload: a payload that is streamed into a place while the event loop goes on.

Threads do the writing, one call at a time, while the next piece is received. A
caller who is cancelled does not end the call that is under way: the place is given
back only when no thread writes to it any more and no commit has it in hand, or a
descriptor could be closed, and be another file's, under a thread that writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import lmdb

from dolmen.payload import Payload
from dolmen.store import Put
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.place import Place

T = TypeVar("T")
InThread = Callable[..., asyncio.Future[Any]]
"""Runs a call with its arguments in a thread."""


class Upload:
    """One streamed blob. Whoever made it calls `end`, whatever happened."""

    def __init__(self, log: Log, in_thread: InThread, *, alone_above: int) -> None:
        self._log, self._in_thread, self._alone_above = log, in_thread, alone_above
        self._call: asyncio.Future[Any] | None = None
        self._place: Place | None = None

    async def receive(self, payload: Payload, name_and_metadata: int) -> Place:
        """Write the whole payload to a place; raises `Full`, `ReadOnly`, `BadContent`."""
        await self._wait(self._in_thread(self._take_place, name_and_metadata, payload.size))
        assert self._place is not None
        writing: asyncio.Future[None] | None = None
        async for piece in payload:
            if writing is not None:
                await self._wait(writing)
            # The next piece is received while this one is written.
            writing = self._call = self._in_thread(self._place.take, piece)
        if writing is not None:
            await self._wait(writing)
        self._place.check_whole()
        return self._place

    async def commit(self, done: asyncio.Future[Put]) -> Put:
        """Wait for the commit of the write that has the place."""
        return await self._wait(done)

    def end(self) -> None:
        """Give the place back if nothing came to stand in it, as soon as nobody uses it."""
        if self._call is not None and not self._call.done():
            self._call.add_done_callback(self._give_back)
        else:
            self._give_back(self._call)

    def _take_place(self, name_and_metadata: int, length: int) -> None:
        alone = length > self._alone_above
        self._place = self._log.place(name_and_metadata, length, alone=alone)

    async def _wait(self, call: asyncio.Future[T]) -> T:
        self._call = call
        try:
            return await asyncio.shield(call)
        except (OSError, lmdb.Error) as error:
            raise self._log.refused(error) from error

    def _give_back(self, call: asyncio.Future[Any] | None) -> None:
        if call is not None and not call.cancelled():
            call.exception()  # seen: the caller has it, or is gone
        if self._place is not None:
            self._place.abandon()
