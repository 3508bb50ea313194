"""What lies in memcached under a blob's name: its head, and the data of a small one.

Little-endian: 16 bytes that name the parts of a large blob (zeros: the data is here), 4 bytes
with the second of arrival, then a record as on disk (`dolmen.record`); of a large blob, or a
tombstone, only its head. A part is up to `PART` bytes and their block checksums.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dolmen.errors import DolmenError
from dolmen.record import block_sums, blocks_match, decode_head, encode_head, sums_size
from dolmen.store import BlobInfo

PART = 512 * 1024
"""A server takes items of up to 1 MiB, its own bookkeeping and the metadata included."""
HERE = bytes(16)
_PLACE = struct.Struct("<16sI")


@dataclass(slots=True)
class Item:
    """A blob's item. `parts` names the parts, `HERE` when `data` is all of it."""

    info: BlobInfo
    parts: bytes = HERE
    data: bytes = b""

    @property
    def count(self) -> int:
        """How many parts there are."""
        return 0 if self.parts == HERE else (self.info.size + PART - 1) // PART

    def encode(self) -> bytes:
        """The item's bytes."""
        info = self.info
        head = encode_head(
            info.kind, info.name.encode(), info.metadata, info.size, info.stamp, info.checksum
        )
        sums = block_sums(self.data) if self.data else b""
        return b"".join((_PLACE.pack(self.parts, info.arrived), head, self.data, sums))


def decode(value: bytes) -> Item | None:
    """The item with these bytes; None for what is damaged. Raises nothing."""
    try:
        parts, arrived = _PLACE.unpack_from(value)
        head = decode_head(value, _PLACE.size)
        name = head.name.decode("ascii")
    except (struct.error, ValueError, DolmenError):
        return None
    info = BlobInfo(name, head.length, head.kind, head.stamp, head.checksum, head.metadata, arrived)
    if parts != HERE:
        return Item(info, parts)
    start = _PLACE.size + head.data_offset
    end = start + head.length
    if len(value) != end + sums_size(head.length) or not blocks_match(
        value[start:end], value[end:]
    ):
        return None
    return Item(info, HERE, value[start:end])


def encode_part(data: bytes) -> bytes:
    """A part as it is stored."""
    return data + block_sums(data)


def decode_part(value: bytes, size: int) -> bytes | None:
    """The data of a part of `size` bytes; None for what is damaged."""
    data = value[:size]
    return data if len(data) == size and blocks_match(data, value[size:]) else None
