"""Heads: one write of one name, described by the key of an object.

    heads/PPPP/NAME!/STAMP.KIND.CHECKSUM.SIZE.ID.METADATA

PPPP is the partition, numbers are in hex: STAMP (16 digits), KIND (1), CHECKSUM (32), SIZE in
bytes, ID (32 digits, random: no two writes share a key or data). METADATA is `m` and the
metadata in base64url, or, above 96 bytes, `h` and its hash in hex; the object then begins with
the metadata. What follows in the object is the data, where it is no more than 64 KiB; more is
in parts, `data/PPPP/NAME!/ID.NUMBER`, with the ID of the head. An empty object with the same key
and `!` behind it marks a head whose bytes failed their check. No word between slashes has more
than 255 characters, no key more than 400.

`!` sorts before everything a name is made of, so keys sort in list order. STAMP comes first, so a
listing that passes a name while it is being written sees the new head after the old one.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Undecodable
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace

from dolmen import metadata
from dolmen.closing import closing
from dolmen.errors import Unavailable
from dolmen.names import partition_of
from dolmen.store import ALL_PARTITIONS, BlobInfo, Rank
from dolmen.stores.bucket_client import PAGE, Client, Found

INLINE = 65_536
"""Blobs up to this size are in their heads."""
_IN_KEY = 96
_KEY = re.compile(
    r"heads/[0-9a-f]{4}/(?P<name>[^/]+)!/(?P<stamp>[0-9a-f]{16})\.(?P<kind>[123])"
    r"\.(?P<checksum>[0-9a-f]{32})\.(?P<size>[0-9a-f]+)\.(?P<id>[0-9a-f]{32})"
    r"\.(?:m(?P<metadata>[\w=-]*)|h(?P<hash>[0-9a-f]{32}))(?P<damaged>!?)",
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


def heads_of(objects: Iterable[Found]) -> list[Head]:
    """The heads of one name, the current one last. Objects that are no heads are left out."""
    heads, marked = [], set()
    for path, modified in objects:
        key = _KEY.fullmatch(path)
        if key is not None and key["damaged"]:
            marked.add(path[:-1])
        elif key is not None and (head := _parsed(key, modified)) is not None:
            heads.append(head)
    if marked:
        heads = [replace(head, damaged=head.path in marked) for head in heads]
    # The same write may be there twice: sent to two servers at once, or again after damage.
    heads.sort(key=lambda head: (head.rank, not head.damaged, head.arrived, head.id))
    return heads


def _parsed(key: re.Match[str], modified: int) -> Head | None:
    try:
        meta = urlsafe_b64decode(key["metadata"] or "")
    except Undecodable:
        return None
    return Head(
        key["name"],
        int(key["size"], 16),
        int(key["kind"]),
        int(key["stamp"], 16),
        bytes.fromhex(key["checksum"]),
        meta,
        modified,
        key["id"],
        bytes.fromhex(key["hash"]) if key["hash"] else metadata.hash_of(meta),
        apart=key["hash"] is not None,
    )


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
    index, folder, previous = 0, "", ""
    gathered: list[Found] = []
    while index < len(wanted):
        leap = False
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
                        continue  # no object of ours, or the server begins too early
                    if place[0] != folder:
                        if gathered:
                            yield gathered
                            gathered = []
                        folder = place[0]
                        index = bisect_left(wanted, int(place[1], 16), index)
                        if index == len(wanted):
                            return
                    if int(place[1], 16) == wanted[index]:
                        gathered.append(found)
                leap = not gathered and len(page) == PAGE
                if leap:
                    break
        if not leap:
            break
    if gathered:
        yield gathered
