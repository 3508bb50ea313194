"""What lies in a bucket: heads, each one write of one name as its key says, and data in parts.

    heads/PPPP/NAME!/STAMP.KIND.CHECKSUM.SIZE.ID.METADATA
    data/PPPP/NAME!/ID.NUMBER

PPPP is the partition, numbers are in hex: STAMP (16 digits), KIND (1), CHECKSUM (32), SIZE in
bytes, ID (32 digits, random: no two writes share a key or data). METADATA is `m` and the
metadata in base64url, or, above 96 bytes, `h` and its hash in hex; the object then begins with
the metadata. What follows in the object is the data, where it is no more than 64 KiB; more is
in parts of 4 MiB with the ID of the head (`dolmen.stores.parts`). An empty object with the same
key and `!` behind it marks a head whose bytes failed their check. No word between slashes has
more than 255 characters, no key more than 400.

`!` sorts before everything a name is made of, so keys sort in list order. STAMP comes first, so a
listing that passes a name while it is being written sees the new head after the old one.
"""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dolmen import metadata
from dolmen.closing import closing
from dolmen.errors import DolmenError, Unavailable
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Payload, read_whole
from dolmen.store import ALL_PARTITIONS, BlobInfo, Rank
from dolmen.stores.bucket_client import PAGE, Client, Found
from dolmen.stores.parts import Parts

INLINE = 65_536
"""Blobs up to this size are in their heads."""
PART = 4 << 20
PARTS = Parts(PART, at_once=3)
GRACE = 86_400
"""Seconds for which what no head refers to, or what was outranked, is kept."""
_IN_KEY = 96
_KEY = re.compile(
    r"heads/[0-9a-f]{4}/(?P<name>[^/]+)!/(?P<stamp>[0-9a-f]{16})\.(?P<kind>[123])"
    r"\.(?P<checksum>[0-9a-f]{32})\.(?P<size>[0-9a-f]+)\.(?P<id>[0-9a-f]{32})"
    r"\.(?:m(?P<metadata>(?:[\w-]{4})*(?:[\w-]{2}==|[\w-]{3}=)?)|h(?P<hash>[0-9a-f]{32}))",
    re.ASCII,
)
_PLACE = re.compile(r"(?:heads|data)/([0-9a-f]{4})/[^/]+/")


@dataclass(slots=True)
class Head(BlobInfo):
    """A head; `arrived` is when it was written, by the bucket's clock.

    `metadata` is empty where the object begins with it (`apart`).
    """

    id: str = ""
    metadata_hash: bytes = b""
    apart: bool = False
    damaged: bool = False

    @property
    def rank(self) -> Rank:
        """The rank of the write."""
        return Rank(self.stamp, self.kind, self.checksum, self.metadata_hash)

    @property
    def path(self) -> str:
        """The key."""
        last = "m" + urlsafe_b64encode(self.metadata).decode()
        if self.apart:
            last = "h" + self.metadata_hash.hex()
        return (
            f"heads/{folder_of(self.name)}/{self.stamp:016x}.{self.kind:x}"
            f".{self.checksum.hex()}.{self.size:x}.{self.id}.{last}"
        )

    @property
    def mark(self) -> str:
        """The key of the object that says it is damaged."""
        return self.path + "!"

    def info(self, meta: bytes = b"") -> BlobInfo:
        """What it says, with metadata that is not in the key."""
        meta = meta if self.apart else self.metadata
        return BlobInfo(
            self.name, self.size, self.kind, self.stamp, self.checksum, meta, self.arrived
        )


def head_of(info: BlobInfo, id_: str) -> Head:
    """The head of a write."""
    hashed, apart = metadata.hash_of(info.metadata), len(info.metadata) > _IN_KEY
    meta = b"" if apart else info.metadata
    return Head(
        info.name, info.size, info.kind, info.stamp, info.checksum, meta, 0, id_, hashed, apart
    )


def folder_of(name: str) -> str:
    """The folder, below `heads` or `data`, in which what belongs to a name is."""
    return f"{partition_of(name):04x}/{name}!"


def part_path(name: str, id_: str, number: int) -> str:
    """The key of a part of the data that belongs to the head with this ID."""
    return f"data/{folder_of(name)}/{id_}.{number:06x}"


def heads_of(objects: Sequence[Found]) -> list[Head]:
    """The heads of one name, the current one last. Objects that are no heads are left out."""
    marked = {found.path for found in objects if found.path.endswith("!")}
    keys = [(_KEY.fullmatch(found.path), found) for found in objects]
    heads = [
        Head(
            key["name"],
            int(key["size"], 16),
            int(key["kind"]),
            int(key["stamp"], 16),
            bytes.fromhex(key["checksum"]),
            meta := urlsafe_b64decode(key["metadata"] or ""),
            found.modified,
            key["id"],
            bytes.fromhex(key["hash"]) if key["hash"] else metadata.hash_of(meta),
            apart=key["hash"] is not None,
            damaged=f"{found.path}!" in marked,
        )
        for key, found in keys
        if key is not None
    ]
    # The same write may be there twice: sent to two servers at once, or again after damage.
    heads.sort(key=lambda head: (head.rank, not head.damaged, head.arrived, head.id))
    return heads


async def by_name(
    client: Client,
    top: str,
    wanted: Sequence[int] = ALL_PARTITIONS,
    after: str | None = None,
) -> AsyncIterator[list[Found]]:
    """The objects of each name below `heads` or `data`, a name at a time, in list order.

    Only those behind the path `after`, in the partitions `wanted` (ascending). It takes no more
    requests than one listing of everything, and fewer where a leap over partitions saves any.
    """
    index, folder, leaping = 0, "", True
    gathered: list[Found] = []
    while leaping and index < len(wanted):
        leaping, previous = False, ""
        after = max(after or "", f"{top}/{wanted[index]:04x}")
        async with closing(client.pages(top, after)) as pages:
            async for page in pages:
                for found in page:
                    if found.path < previous:
                        raise Unavailable(
                            f"{client.url} does not list in the order of the keys, which dolmen"
                            " needs: use another kind of bucket"
                        )
                    previous = found.path
                    if (place := _PLACE.match(found.path)) is None or found.path <= after:
                        continue  # no object of ours, or the server begins at its first one
                    if place[0] != folder:
                        if gathered:
                            yield gathered
                        folder, gathered = place[0], []
                        index = bisect_left(wanted, int(place[1], 16), index)
                        if index == len(wanted):
                            return
                    if int(place[1], 16) == wanted[index]:
                        gathered.append(found)
                leaping = not gathered and len(page) == PAGE and page[0].path > after
                if leaping:
                    break
    if gathered:
        yield gathered


class Upload:
    """The data of one write on its way in: small data stays in memory, parts go to the bucket.

    The sweep deletes parts without a head once the newest of them is `GRACE` old by the bucket's
    clock. So a head is only good if it came well before: `check_age` allows half of that.
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
