"""Revisions: a new stamp and metadata for data that stays where it is.

The data of a REVISION record says where the blob's own record lies, in 19 bytes
(little-endian): segment number (4), offset (4), length of the metadata inside
that record (2), kind (1), length of its data (8). The revision's checksum is the
blob's, so it can be decoded without reading the other record.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dolmen.stores.volume.entry import Entry

_BASE = struct.Struct("<IIHBQ")
SIZE = _BASE.size


class Base(NamedTuple):
    """Where the data of a revised blob lies."""

    segment: int
    offset: int
    inner: int
    kind: int
    length: int


def encode(standing: Entry) -> bytes:
    """The data of a revision of what stands."""
    return _BASE.pack(
        standing.segment, standing.offset, standing.inner, standing.kind, standing.length
    )


def decode(data: bytes | memoryview) -> Base:
    """The place a revision names."""
    return Base(*_BASE.unpack(data))
