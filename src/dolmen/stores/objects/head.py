"""Heads: one write of one name, told by the key of an object.

    heads/PPPP/NAME!/STAMP.KIND.CHECKSUM.SIZE.ARRIVED.ID.METADATA

Numbers are in hex: STAMP (16 digits), KIND (1), CHECKSUM (32), SIZE in bytes, ARRIVED (the second
in which it was written), ID (24 digits: the second in which the data began to come, 16 at random).
METADATA is `m` and the metadata in base64url, or, above 96 bytes, `h` and its hash in hex; the
object then begins with the metadata. What follows in the object is the data, where it is no
more than 64 KiB. No key is longer than 400 bytes, no word between slashes than 255.

`!` sorts before everything a name is made of, so keys sort as names do; STAMP comes first, so
that a listing that passes a name while it is being written comes by the new head after the old.
"""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Undecodable
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from dolmen import metadata
from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.store import BlobInfo, Rank

INLINE = 65_536
"""Blobs up to this size are in their heads."""
_IN_KEY = 96
_KEY = re.compile(
    r"heads/[0-9a-f]{4}/(?P<name>[^/]+)!/(?P<stamp>[0-9a-f]{16})\.(?P<kind>[123])"
    r"\.(?P<checksum>[0-9a-f]{32})\.(?P<size>[0-9a-f]+)\.(?P<arrived>[0-9a-f]+)"
    r"\.(?P<id>[0-9a-f]{24})\.(?:m(?P<metadata>[\w=-]*)|h(?P<hash>[0-9a-f]{32}))(?P<damaged>!?)",
    re.ASCII,
)


@dataclass(slots=True, frozen=True)
class Head:
    """A head. `metadata` is None where the object begins with it."""

    name: str
    stamp: int
    kind: int
    checksum: bytes
    size: int
    arrived: int
    id: str
    metadata: bytes | None
    metadata_hash: bytes
    damaged: bool = False

    @property
    def rank(self) -> Rank:
        """The rank of the write."""
        return Rank(self.stamp, self.kind, self.checksum, self.metadata_hash)

    @property
    def path(self) -> str:
        """The key."""
        told = (
            "h" + self.metadata_hash.hex()
            if self.metadata is None
            else "m" + urlsafe_b64encode(self.metadata).decode()
        )
        return (
            f"{folder_of('heads', self.name)}/{self.stamp:016x}.{self.kind:x}"
            f".{self.checksum.hex()}.{self.size:x}.{self.arrived:x}.{self.id}.{told}"
        )

    @property
    def mark(self) -> str:
        """The key of the object that says it is damaged."""
        return self.path + "!"

    @property
    def data(self) -> str | None:
        """The folder of its parts, where it has any."""
        return f"{folder_of('data', self.name)}/{self.id}" if self.size > INLINE else None

    def info(self, meta: bytes) -> BlobInfo:
        """What it tells, with its metadata."""
        return BlobInfo(
            self.name, self.size, self.kind, self.stamp, self.checksum, meta, self.arrived
        )


def head_of(info: BlobInfo, id_: str) -> Head:
    """The head of a write."""
    return Head(
        info.name,
        info.stamp,
        info.kind,
        info.checksum,
        info.size,
        info.arrived,
        id_,
        info.metadata if len(info.metadata) <= _IN_KEY else None,
        metadata.hash_of(info.metadata),
    )


def new_id(now: float) -> str:
    """An id nothing else has."""
    return f"{int(now):08x}{os.urandom(8).hex()}"


def folder_of(top: str, name: str) -> str:
    """The folder under `top` in which what belongs to a name is."""
    return f"{top}/{partition_of(name):04x}/{name}!"


def heads_of(paths: Iterable[str]) -> dict[str, list[Head]]:
    """The heads of each name, the one that stands last. Paths that are no heads are left out."""
    heads: defaultdict[str, list[Head]] = defaultdict(list)
    marked = set()
    for path in paths:
        if (found := _KEY.fullmatch(path)) is None:
            continue
        if found["damaged"]:
            marked.add(path[:-1])
        elif (head := _parsed(found)) is not None:
            heads[head.name].append(head)
    for name in heads:
        if marked:
            heads[name] = [
                replace(head, damaged=True) if head.path in marked else head for head in heads[name]
            ]
        # The same write twice (sent to two servers at once, or made anew for a damaged one).
        heads[name].sort(key=lambda head: (head.rank, not head.damaged, head.arrived, head.id))
    return heads


def _parsed(found: re.Match[str]) -> Head | None:
    meta: bytes | None = None
    if found["hash"] is None:
        try:
            meta = urlsafe_b64decode(found["metadata"])
        except Undecodable:
            return None
    return Head(
        found["name"],
        int(found["stamp"], 16),
        Kind(int(found["kind"])),
        bytes.fromhex(found["checksum"]),
        int(found["size"], 16),
        int(found["arrived"], 16),
        found["id"],
        meta,
        bytes.fromhex(found["hash"]) if meta is None else metadata.hash_of(meta),
    )
