"""What lies in a bucket: heads, each one write of one name as its key says, and parts of data.

    blobs/PPPP/NAME!/STAMP.KIND.CHECKSUM.SIZE.ID.METADATA
    blobs/PPPP/NAME!/p.ID.NUMBER

PPPP is the partition, numbers are in hex: STAMP (16 digits), KIND (1), CHECKSUM (32), SIZE in
bytes, ID (32 digits, random: no two writes share a key or data). METADATA is `m` and the
metadata in base64url, or, above 96 bytes, `h` and its hash in hex; the object then begins with
the metadata. What follows in the object is the data, where it is no more than 4 MiB, or 64 KiB
behind metadata, which is read for a listing. More is in parts of 4 MiB with the ID of the head
(`dolmen.stores.parts`). An empty object with the same key and `!` behind it marks a head whose
bytes failed their check. No word between slashes has more than 255 characters, no key more
than 400.

`!` sorts before everything a name is made of, so keys sort in list order. STAMP comes first, so a
listing that passes a name while it is being written sees the new head after the old one. Parts
come behind the heads.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from dolmen import metadata
from dolmen.closing import closing
from dolmen.errors import Unavailable
from dolmen.names import partition_of
from dolmen.store import ALL_PARTITIONS, BlobInfo, Rank
from dolmen.stores.bucket_client import Client, Found

PART = 4 << 20
_WITH_METADATA = 65_536
"""Data up to this size is in a head that begins with the metadata; up to `PART` in others."""
_IN_KEY = 96
_FEW = 32
"""So many partitions are listed one by one; more come from a listing of everything."""
_KEY = re.compile(
    r"blobs/[0-9a-f]{4}/(?P<name>[^/]+)!/(?P<stamp>[0-9a-f]{16})\.(?P<kind>[123])"
    r"\.(?P<checksum>[0-9a-f]{32})\.(?P<size>[0-9a-f]+)\.(?P<id>[0-9a-f]{32})"
    r"\.(?:m(?P<metadata>(?:[\w-]{4})*(?:[\w-]{2}==|[\w-]{3}=)?)|h(?P<hash>[0-9a-f]{32}))",
    re.ASCII,
)
_FOLDER = re.compile(r"blobs/([0-9a-f]{4})/[^/]+!/")


@dataclass(slots=True)
class Head(BlobInfo):
    """A head; `arrived` is when it was written, by the bucket's clock.

    `metadata` is empty where the object begins with it (`apart`); `inside` is how much of the
    data is in the object, all or none.
    """

    path: str = ""
    id: str = ""
    metadata_hash: bytes = b""
    apart: bool = False
    damaged: bool = False

    @property
    def rank(self) -> Rank:
        """The rank of the write."""
        return Rank(self.stamp, self.kind, self.checksum, self.metadata_hash)

    @property
    def inside(self) -> int:
        """See above."""
        return self.size if fits(self.size, apart=self.apart) else 0

    def info(self, meta: bytes) -> BlobInfo:
        """What it says, with this metadata."""
        return BlobInfo(
            self.name, self.size, self.kind, self.stamp, self.checksum, meta, self.arrived
        )


def folder_of(name: str) -> str:
    """The folder in which everything is that belongs to a name."""
    return f"blobs/{partition_of(name):04x}/{name}!"


def part_path(name: str, id_: str, number: int) -> str:
    """The key of a part of the data that belongs to the head with this ID."""
    return f"{folder_of(name)}/p.{id_}.{number:06x}"


def is_part(path: str) -> bool:
    """Whether this is the key of a part."""
    return path.rpartition("/")[2].startswith("p.")


def fits(size: int, *, apart: bool) -> bool:
    """Whether data of this size is in its head; `apart` where the metadata is not in the key."""
    return size <= (_WITH_METADATA if apart else PART)


def is_apart(meta: bytes) -> bool:
    """Whether metadata is too long for the key."""
    return len(meta) > _IN_KEY


def head_path(info: BlobInfo, id_: str) -> tuple[str, bytes]:
    """The key of the head of a write, and the metadata that the object has to begin with."""
    meta = info.metadata
    last, apart = "m" + urlsafe_b64encode(meta).decode(), b""
    if is_apart(meta):
        last, apart = "h" + metadata.hash_of(meta).hex(), meta
    said = f"{info.stamp:016x}.{info.kind:x}.{info.checksum.hex()}.{info.size:x}.{id_}.{last}"
    return f"{folder_of(info.name)}/{said}", apart


def heads_of(objects: Sequence[Found]) -> list[Head]:
    """The heads among the objects of one name, the current one last."""
    marked = {found.path for found in objects if found.path.endswith("!")}
    heads = []
    for path, modified in objects:
        if (key := _KEY.fullmatch(path)) is None:
            continue
        size, meta = int(key["size"], 16), urlsafe_b64decode(key["metadata"] or "")
        hashed = bytes.fromhex(key["hash"]) if key["hash"] else metadata.hash_of(meta)
        heads.append(
            Head(
                key["name"],
                size,
                int(key["kind"]),
                int(key["stamp"], 16),
                bytes.fromhex(key["checksum"]),
                meta,
                modified,
                path,
                key["id"],
                hashed,
                key["hash"] is not None,
                f"{path}!" in marked,
            )
        )
    # The same write may be there twice: sent to two servers at once, or again after damage.
    heads.sort(key=lambda head: (head.rank, not head.damaged, head.arrived, head.id))
    return heads


async def by_name(
    client: Client, wanted: Sequence[int] = ALL_PARTITIONS, after: str | None = None
) -> AsyncIterator[list[Found]]:
    """The objects of each name in the partitions `wanted` (ascending), in list order.

    `after` is the name behind whose place it begins.
    """
    behind = ""
    if after is not None:
        behind = f"{folder_of(after)}0"  # "0" comes right behind "/"
        wanted = wanted[bisect_left(wanted, partition_of(after)) :]
    folders = ["blobs"] if len(wanted) > _FEW else [f"blobs/{one:04x}" for one in wanted]
    chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
    gathered: list[Found] = []
    folder = previous = ""
    for listed in folders:
        async with closing(client.pages(listed, behind or None)) as pages:
            async for page in pages:
                for found in page:
                    if found.path < previous:
                        raise Unavailable(
                            f"{client.url} does not list in the order of the keys, which dolmen"
                            " needs: use another kind of bucket"
                        )
                    previous = found.path
                    place = _FOLDER.match(found.path)
                    if place is None or int(place[1], 16) not in chosen or found.path < behind:
                        continue  # some servers list from their first object all the same
                    if place[0] != folder:
                        if gathered:
                            yield gathered
                        folder, gathered = place[0], []
                    gathered.append(found)
    if gathered:
        yield gathered
