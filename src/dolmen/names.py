"""Names of blobs, ids of objects, and the partition a name falls into.

A blob name matches `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`. An object's id is the
lower-case hex digest of its whole content (SHA-256, 64 digits, so that
`sha256sum file` prints it; or SHA-1, 40 digits). A chunk of a large object is
named `chunk` and the BLAKE3 hex digest of its bytes (letters and digits only, as sos
wants it). Every other name is just a name and is never taken for a digest.

The *checksum* of a blob is the first 128 bits of the BLAKE3 of its data. It
decides "the same content" everywhere in dolmen (CRC-32C only finds damage).
"""

from __future__ import annotations

import hashlib
import re
import zlib

from blake3 import blake3

from dolmen.errors import InvalidName

Buffer = bytes | bytearray | memoryview

PARTITIONS = 65_536
CHECKSUM_SIZE = 16
CHUNK_PREFIX = "chunk"
NAME_MAX = 128

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_OBJECT_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}", re.ASCII)
_CHUNK_NAME = re.compile(r"chunk[0-9a-f]{64}", re.ASCII)


def check_name(name: str) -> str:
    """Return `name` if it may name a blob; raise `InvalidName` otherwise."""
    if _NAME.fullmatch(name) is None:
        shown = name if len(name) <= 140 else name[:140] + "…"
        raise InvalidName(
            f"{shown!r} is not a valid blob name: a name is 1 to 128 characters of "
            "A-Z a-z 0-9 . _ - and begins with a letter or a digit"
        )
    return name


def is_object_id(name: str) -> bool:
    """Whether `name` has the form of an object id (64 or 40 lower-case hex digits)."""
    return _OBJECT_ID.fullmatch(name) is not None


def is_chunk_name(name: str) -> bool:
    """Whether `name` has the form of a chunk's name (`chunk` and 64 hex digits)."""
    return len(name) == 69 and _CHUNK_NAME.fullmatch(name) is not None


def partition_of(name: str) -> int:
    """The partition of a name, 0 to 65,535: the upper half of zlib's CRC-32 of it."""
    return zlib.crc32(name.encode()) >> 16


def chunk_name(data: Buffer) -> str:
    """The name of a chunk with these bytes."""
    return CHUNK_PREFIX + blake3(data).hexdigest()


def checksum_of(data: Buffer) -> bytes:
    """The checksum of these bytes: 16 bytes, the first half of their BLAKE3 digest."""
    return blake3(data).digest(CHECKSUM_SIZE)


def id_hasher(object_id: str, data: Buffer = b"") -> hashlib._Hash:
    """A hash that begins with `data`, of the kind of this object id: SHA-256 or SHA-1."""
    kind = "sha256" if len(object_id) == 64 else "sha1"
    return hashlib.new(kind, data, usedforsecurity=False)


def matches_name(name: str, data: Buffer) -> bool:
    """Whether these bytes may be stored whole under `name`.

    An object id must be the digest of the bytes (by SHA-256 or SHA-1, as its
    length tells), a chunk's name must hold their BLAKE3; under any other name
    every content is right.
    """
    if is_object_id(name):
        return id_hasher(name, data).hexdigest() == name
    if is_chunk_name(name):
        return chunk_name(data) == name
    return True
