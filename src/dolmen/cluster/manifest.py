r"""The manifest of a large object: its size and its chunks.

Canonical: the same content always gives the same bytes. Little-endian:

    offset size  field
         0    8  magic, b"dlmnmfst"
         8    4  version, 1
        12    4  chunk size, 4,194,304
        16    8  size of the object in bytes
        24   32  BLAKE3 of each chunk in order, all but the last of the full size

The chunk size is part of the format, so it never depends on who uploads. A manifest
is itself one blob of at most 16 MiB, which bounds an object at 2 TiB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from dolmen.errors import Corrupt
from dolmen.names import CHUNK_PREFIX

CHUNK = 4 << 20
MANIFEST_MAX = 16 << 20
_MAGIC = b"dlmnmfst"
_VERSION = 1
_HEAD = struct.Struct("<8sIIQ")
_DIGEST = 32
OBJECT_MAX = (MANIFEST_MAX - _HEAD.size) // _DIGEST * CHUNK
"""The largest object, in bytes."""


class ChunkNames(Sequence[str]):
    """The names of chunks, read where their digests lie: 32 bytes each, one after the other."""

    __slots__ = ("digests",)

    def __init__(self, digests: bytes | bytearray | memoryview) -> None:
        self.digests = digests

    def __len__(self) -> int:
        return len(self.digests) // _DIGEST

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        places = range(len(self))[at]
        if isinstance(places, range):
            return [self[place] for place in places]
        return CHUNK_PREFIX + self.digests[places * _DIGEST : (places + 1) * _DIGEST].hex()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The size of an object in bytes, and the names of its chunks in order."""

    size: int
    chunks: Sequence[str]

    def encode(self) -> bytes:
        """The manifest's bytes."""
        digests = (
            [self.chunks.digests]
            if isinstance(self.chunks, ChunkNames)
            else [bytes.fromhex(name.removeprefix(CHUNK_PREFIX)) for name in self.chunks]
        )
        return b"".join((_HEAD.pack(_MAGIC, _VERSION, CHUNK, self.size), *digests))


def decode(data: bytes | bytearray | memoryview) -> Manifest:
    """The manifest in these bytes, which it goes on using; raises `Corrupt` when they are none."""
    if len(data) < _HEAD.size:
        raise Corrupt("a manifest is cut short")
    magic, version, chunk, size = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or chunk != CHUNK:
        raise Corrupt("what should be a manifest is none, or one of a newer version")
    count = (size + CHUNK - 1) // CHUNK
    if len(data) != _HEAD.size + count * _DIGEST:
        raise Corrupt(f"a manifest of {size} bytes should name {count} chunks")
    return Manifest(size, ChunkNames(memoryview(data)[_HEAD.size :]))
