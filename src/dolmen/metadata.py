"""Metadata of a blob: name-value pairs in one canonical encoding.

Names are lower-cased and sorted, values are kept byte for byte; the same pairs
always encode to the same bytes, because their hash takes part in deciding which
of two writes wins. Encoded metadata is at most 16 KiB. Everything below the
servers carries it as these bytes and never looks inside.

Encoding, for each pair in order of its name: one byte with the name's length,
two bytes (little-endian) with the value's length, the name, the value. No pairs
encode to no bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from blake3 import blake3

from dolmen.errors import InvalidName, TooLarge

METADATA_MAX = 16_384

_NONE = bytes(16)


def encode(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode name-value pairs; several values of one name are joined by `, `.

    Raises `InvalidName` for an empty or over-long name, `TooLarge` when the
    result is more than 16 KiB.
    """
    merged: dict[bytes, bytes] = {}
    for raw, value in pairs:
        name = raw.lower()
        if not 0 < len(name) < 256:
            raise InvalidName(f"a metadata name is 1 to 255 bytes, not {len(name)}")
        merged[name] = merged[name] + b", " + value if name in merged else value
    encoded = bytearray()
    for name in sorted(merged):
        value = merged[name]
        if len(encoded) + 3 + len(name) + len(value) > METADATA_MAX:
            raise TooLarge(f"metadata is more than {METADATA_MAX} bytes")
        encoded += bytes((len(name),)) + len(value).to_bytes(2, "little") + name + value
    return bytes(encoded)


def decode(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of encoded metadata, in order of their names.

    Raises `InvalidName` when the bytes are not a canonical encoding.
    """
    position, last = 0, b""
    while position < len(encoded):
        name_end = position + 3 + encoded[position]
        value_end = name_end + int.from_bytes(encoded[position + 1 : position + 3], "little")
        name = encoded[position + 3 : name_end]
        if value_end > len(encoded) or name <= last or name != name.lower():
            raise InvalidName(f"metadata is not canonical at byte {position}")
        yield name, encoded[name_end:value_end]
        position, last = value_end, name


@lru_cache(maxsize=64)  # most blobs have the same: a media type
def check(encoded: bytes) -> bytes:
    """Return metadata that came from outside if it is canonical and within bounds.

    Raises `InvalidName` or `TooLarge`.
    """
    if len(encoded) > METADATA_MAX:
        raise TooLarge(f"metadata is {len(encoded)} bytes, more than {METADATA_MAX}")
    for _ in decode(encoded):
        pass
    return encoded


def hash_of(encoded: bytes) -> bytes:
    """16 bytes that stand for the metadata where two writes are compared; zeros for none."""
    return blake3(encoded).digest(16) if encoded else _NONE
