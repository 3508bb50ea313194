"""Data on its way into a bucket, and the sweep, by which what nobody refers to goes after a day.

Any number of processes may write and sweep at once. Why nothing is deleted that somebody needs
is said in `dolmen.stores.bucket`. Read that first.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

from dolmen.closing import closing
from dolmen.errors import DolmenError, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Payload, read_whole
from dolmen.store import Write
from dolmen.stores.bucket_client import PAGE, Client, Found
from dolmen.stores.bucket_layout import PART, by_name, fits, heads_of, is_apart, is_part, part_path
from dolmen.stores.parts import Parts

PARTS = Parts(PART, at_once=3)
GRACE = 86_400
"""Seconds for which what no head refers to, or what was outranked, is kept."""
FIRST, _NEXT = 60, 3600
"""Seconds after which an open store looks whether a sweep is due."""
_SWEPT = "swept"
"""An object that was last written when a sweep began."""
_log = logging.getLogger("dolmen.bucket")


class Upload:
    """The data of one write on its way in: small data stays in memory, parts go to the bucket.

    The sweep deletes parts without a head once the newest of them is `GRACE` old by the bucket's
    clock. So a head is only good if it came well before: `check_age` allows half of that.
    `elapsed` is `bucket_client.seconds`.
    """

    def __init__(self, client: Client, write: Write, elapsed: Callable[[], float]) -> None:
        self.id = os.urandom(16).hex()
        self.data: bytes | memoryview = b""
        self.size = 0
        self._client, self._write, self._elapsed = client, write, elapsed
        self._paths: list[str] = []
        self._sent_at = elapsed()

    async def take(self, payload: Payload) -> bytes:
        """Take all of a payload; returns its checksum."""
        self.size = payload.size
        if fits(payload.size, apart=is_apart(self._write.metadata)):
            self.data = await read_whole(payload)
            return checksum_of(self.data)
        return await PARTS.send(payload, self._send)

    async def _send(self, number: int, part: memoryview) -> None:
        path = part_path(self._write.name, self.id, number)
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


async def sweep_again(client: Client) -> float:
    """Sweep if it is due; returns when to look again, in seconds."""
    try:
        await sweep_if_due(client)
    except DolmenError as error:
        _log.warning("outdated data could not be deleted: %s", error)
    return _NEXT


async def sweep_if_due(client: Client) -> None:
    """Sweep, unless a sweep began within a day, in whichever process."""
    now = await client.now(fresh=True)  # before anything is listed
    swept = await client.modified(_SWEPT)
    if swept is not None and now - swept < GRACE:
        return
    await client.put(_SWEPT, b"")
    gone: list[str] = []
    try:
        async with closing(by_name(client)) as names:
            async for objects in names:
                gone += _gone(objects, now)
                if len(gone) >= PAGE:
                    await client.delete(gone)
                    gone = []
        await client.delete(gone)
    except DolmenError:
        await client.delete([_SWEPT])
        raise


def _gone(objects: Sequence[Found], now: float) -> list[str]:
    """Of the heads, marks and parts of one name, the paths of those to be deleted."""
    heads = heads_of(objects)
    old = [number for number, head in enumerate(heads) if now - head.arrived >= GRACE]
    outranked = old[-1] if old else 0
    gone = [head.path for head in heads[:outranked]]
    present = {found.path for found in objects}.difference(gone)
    gone += [path for path in present if path.endswith("!") and path[:-1] not in present]
    uploads: defaultdict[str, list[Found]] = defaultdict(list)
    for found in objects:
        if is_part(found.path):
            uploads[found.path.rpartition("/p.")[2].partition(".")[0]].append(found)
    for head in heads[outranked:]:
        uploads.pop(head.id, None)
    for upload in uploads.values():
        if now - max(part.modified for part in upload) >= GRACE:
            gone += [part.path for part in upload]
    return gone
