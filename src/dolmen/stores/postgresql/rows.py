"""A row of `dolmen_blobs`, read and written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dolmen.digests import entry_hash
from dolmen.names import partition_of

_STAMPS = (1 << 64) - 1
from dolmen.store import BlobInfo

if TYPE_CHECKING:
    from asyncpg import Record
    from asyncpg.pool import PoolConnectionProxy

COLUMNS = "name, size, kind, stamp, checksum, metadata, arrived, upload, damaged"
_FROM = """
    FROM unnest($1::integer[], $2::text[]) AS asked (partition, name)
    JOIN dolmen_blobs USING (partition, name)"""
_FIND = f"SELECT {COLUMNS} {_FROM}"
_FIND_DATA = f"SELECT {COLUMNS}, data {_FROM}"
_SIGN = 1 << 63


@dataclass(slots=True)
class Entry:
    """What stands under a name.

    `upload` says where the parts of large data are. `data` is that of a small blob, where it
    was asked for or is to be written; None leaves what is in the row.
    """

    info: BlobInfo
    upload: int | None = None
    damaged: bool = False
    data: bytes | memoryview | None = None

    def revised(self, stamp: int, metadata: bytes, arrived: int) -> Entry:
        """The same data under another stamp and metadata."""
        info = replace(self.info, stamp=stamp, metadata=metadata, arrived=arrived)
        return replace(self, info=info)

    @property
    def hash(self) -> int:
        """What it adds to its partition's digest."""
        info = self.info
        return entry_hash(info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata)


def read(row: Record) -> Entry:
    """The entry in `COLUMNS`, with `data` where that is another column behind them."""
    name, size, kind, stamp, checksum, metadata, arrived, upload, damaged, *rest = row
    info = BlobInfo(name, size, kind, stamp & _STAMPS, checksum, metadata, arrived)
    return Entry(info, upload, damaged, *rest)


def signed(stamp: int) -> int:
    """A stamp as its column holds it."""
    return (stamp ^ _SIGN) - _SIGN


async def find(
    connection: PoolConnectionProxy, names: Iterable[str], *, data: bool = False
) -> dict[str, Entry]:
    """What stands under these names, each given once; with `data` that of small blobs too."""
    partitions = [partition_of(name) for name in names]
    rows = await connection.fetch(_FIND_DATA if data else _FIND, partitions, list(names))
    return {entry.info.name: entry for entry in map(read, rows)}
