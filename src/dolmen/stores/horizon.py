"""How far back a store's memory of deletes goes: the note of its horizon.

A store's *horizon* is the stamp up to which tombstones are gone from it. A store with a
lower horizon than another was away while deletes were forgotten: what it holds from below
the other's horizon, and the other lacks, may have been deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dolmen.record import Kind
from dolmen.stamps import parse_stamp
from dolmen.store import BlobInfo

HORIZON = "horizon"


def horizon_in(notes: Mapping[str, bytes], key: str = HORIZON) -> int:
    """A store's horizon, from its notes: a stamp, 0 where nothing was ever forgotten."""
    noted = notes.get(key)
    return parse_stamp(noted.decode()) if noted else 0


class Horizons(NamedTuple):
    """Those of a source and of where it is copied to; `rejoin` has the source believed anyway."""

    source: int = 0
    destination: int = 0
    rejoin: bool = False

    def forgotten(self, info: BlobInfo) -> bool:
        """Whether the destination, which has nothing under the name, forgot this tombstone."""
        return info.kind == Kind.TOMBSTONE and info.stamp <= self.destination

    def doubtful(self, info: BlobInfo) -> bool:
        """Whether this, which the destination lacks, may have been deleted there."""
        return (
            info.kind != Kind.TOMBSTONE
            and self.source < self.destination >= info.stamp
            and not self.rejoin
        )

    def disputed(self, info: BlobInfo) -> bool:
        """Whether only one of the two would know of a delete of this, had there been one."""
        return self.source != self.destination and info.stamp <= max(self.source, self.destination)


NO_HORIZONS = Horizons()
