"""Writes that meet under one name, and what the contract makes of them."""

from __future__ import annotations

from typing import NamedTuple

from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import BlobInfo, Outcome, Put, Write
from dolmen.testing.conformance.material import META, OTHER_META, at, info_of


class Rival(NamedTuple):
    """A stamped write to a name not yet chosen."""

    stamp: int
    kind: Kind
    data: bytes = b""
    meta: bytes = b""

    def of(self, name: str) -> Write:
        """The write of this name."""
        return Write(name, Bytes(self.data), self.kind, self.meta, self.stamp)

    def info(self, name: str) -> BlobInfo:
        """What stands after it."""
        return info_of(name, self.data, stamp=self.stamp, kind=self.kind, meta=self.meta)

    def answer(self, before: BlobInfo | None) -> Put:
        """What the contract makes of it, given what stands before."""
        new = self.info("")
        if before is None:
            return Put(Outcome.CREATED, self.stamp)
        if new.rank < before.rank:
            return Put(Outcome.SUPERSEDED, before.stamp)
        same = (new.kind, new.checksum) == (before.kind, before.checksum)
        if same and (new.kind is not Kind.TOMBSTONE or new.rank == before.rank):
            return Put(Outcome.UNCHANGED, self.stamp)
        return Put(Outcome.CREATED, self.stamp)


RIVALS = [
    Rival(at(5), Kind.BLOB, b"one"),
    Rival(at(5), Kind.BLOB, b"one", META),
    Rival(at(5), Kind.BLOB, b"two"),
    Rival(at(5), Kind.MANIFEST, b"one"),
    Rival(at(5), Kind.TOMBSTONE),
    Rival(at(5) - 1, Kind.BLOB, b"one"),
    Rival(at(5) + 1, Kind.BLOB, b"one", OTHER_META),
    Rival(at(5) + 1, Kind.TOMBSTONE),
]


def same(found: BlobInfo | None, wanted: BlobInfo) -> bool:
    """Whether two infos agree in all but the time of arrival."""
    return found is not None and (
        (found.name, found.size, *found.rank, found.metadata)
        == (wanted.name, wanted.size, *wanted.rank, wanted.metadata)
    )
