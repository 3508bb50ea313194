"""The data of a write on its way into a bucket.

The sweep deletes parts without a head once the newest of them is `GRACE` old by the bucket's
clock. So a head is only good if it came well before: `Upload.check_age` allows half of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from dolmen.errors import DolmenError, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Payload, read_whole
from dolmen.stores.bucket_client import Client
from dolmen.stores.bucket_head import INLINE, part_path
from dolmen.stores.parts import Parts

PART = 4 << 20
PARTS = Parts(PART, at_once=3)
GRACE = 86_400
"""Seconds for which what no head refers to, or what was outranked, is kept."""


class Upload:
    """The data of one write: small data stays in memory, parts go to the bucket.

    `elapsed` is `bucket_client.seconds`.
    """

    def __init__(self, client: Client, name: str, elapsed: Callable[[], float]) -> None:
        self.id = os.urandom(16).hex()
        self.data: bytes | memoryview = b""
        self.size = 0
        self._client, self._name, self._elapsed = client, name, elapsed
        self._paths: list[str] = []
        self._sent_at = elapsed()

    async def take(self, payload: Payload) -> bytes:
        """Take all of a payload; returns its checksum."""
        self.size = payload.size
        if payload.size <= INLINE:
            self.data = await read_whole(payload)
            return checksum_of(self.data)
        return await PARTS.send(payload, self._send)

    async def _send(self, number: int, part: memoryview) -> None:
        path = part_path(self._name, self.id, number)
        self._paths.append(path)
        self.check_age()
        self._sent_at = self._elapsed()
        await self._client.put(path, part)

    def check_age(self) -> None:
        """Raise `Unavailable` if the last part was sent so long ago that the sweep may be near."""
        if self._paths and self._elapsed() - self._sent_at >= GRACE / 2:
            raise Unavailable("this upload made no progress for half a day: start it again")

    async def drop(self) -> None:
        """Delete the parts of a write that came to nothing, if it can be: the sweep does it too."""
        with suppress(DolmenError):
            await self._client.delete(self._paths)
