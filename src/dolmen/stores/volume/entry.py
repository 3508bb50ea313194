"""Index entries: where a blob lies, and all that `stat`, `list` and `digests` say of it.

`docs/disk-format.md` has the bytes of keys, values and touches. Within a partition keys are not
in the order of the names; who lists sorts each partition. File number 0 is nowhere: the copy
was damaged when its segment was compacted.

Read first: `dolmen.record`.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from dolmen.digests import entry_hash
from dolmen.native import accelerated
from dolmen.record import BLOCK, HEADER_SIZE, Head, Kind, record_size
from dolmen.store import BlobInfo

_VALUE = struct.Struct("<IIHBIHQ16sI")
_HEAD = struct.Struct("<II")
_TOUCH = struct.Struct("<IIHBQ")
TOUCH_SIZE = _TOUCH.size
_DAMAGED, _ALONE, _TOUCHED, _KIND = 0x80, 0x40, 0x20, 0x0F
_LOW = 0xFFFF_FFFF
_HEX, _SHORT_HEX, _CHUNK = b"\0", b"\1", b"\2"
NOWHERE = (0, 0)
Place = tuple[int, int]
"""Number of a file and offset of a record in it."""


class Entry(NamedTuple):
    """One entry. `data` is where the record with the data begins, `head` where the touch lies
    that gave it its stamp and metadata, if any; `inner` the length of the metadata at `data`.
    `alone`: the data is a file of its own.
    """

    data: Place
    inner: int
    kind: int
    length: int
    stamp: int
    checksum: bytes
    arrived: int
    metadata: bytes
    head: Place | None = None
    alone: bool = False
    damaged: bool = False

    def pack(self) -> bytes:
        """The value as it is stored."""
        data, inner, kind, length, stamp, checksum, arrived, metadata, head, alone, damaged = self
        if alone:
            kind |= _ALONE
        if damaged:
            kind |= _DAMAGED
        if head is not None:
            kind |= _TOUCHED
            metadata = _HEAD.pack(*head) + metadata
        low, high = length & _LOW, length >> 32
        return _VALUE.pack(*data, inner, kind, low, high, stamp, checksum, arrived) + metadata

    def info(self, name: str) -> BlobInfo:
        """What the contract says of it."""
        return BlobInfo(
            name, self.length, self.kind, self.stamp, self.checksum, self.metadata, self.arrived
        )

    def data_at(self, name: bytes) -> int:
        """Where the data begins in its file."""
        return self.data[1] + HEADER_SIZE + len(name) + self.inner

    def record_size(self, name: bytes) -> int:
        """The length of the record with the data."""
        length = self.length
        blocks = (length + BLOCK - 1) // BLOCK
        return HEADER_SIZE + len(name) + self.inner + length + 4 * blocks

    def usage(self, name: bytes) -> list[tuple[int, int]]:
        """Files that hold something of it, and how many bytes."""
        used = []
        if self.data != NOWHERE:
            used.append((self.data[0], self.record_size(name)))
        if self.head is not None:
            used.append((self.head[0], record_size(len(name), len(self.metadata), TOUCH_SIZE)))
        return used

    def hash(self, name: bytes) -> int:
        """What it adds to the digest of its partition."""
        return entry_hash(name, self.stamp, self.kind, self.checksum, self.metadata)

    def touch(self) -> bytes:
        """The data of a touch that leaves the blob where it lies."""
        kind = self.kind | _ALONE if self.alone else self.kind
        return _TOUCH.pack(*self.data, self.inner, kind, self.length)


def unpack(value: bytes) -> Entry:
    """The entry that `Entry.pack` wrote."""
    number, offset, inner, kind, low, high, stamp, checksum, arrived = _VALUE.unpack_from(value)
    head, at = None, _VALUE.size
    if kind & _TOUCHED:
        head, at = _HEAD.unpack_from(value, at), at + _HEAD.size
    alone, damaged = kind & _ALONE > 0, kind & _DAMAGED > 0
    length, kind = low | high << 32, kind & _KIND
    fixed = (number, offset), inner, kind, length, stamp, checksum, arrived
    return _entry((*fixed, value[at:], head, alone, damaged))


_entry = Entry._make  # a third faster than the call


def entry_of(head: Head, place: Place, data: bytes) -> Entry | None:
    """What a record at this place makes current; None for a removal. `data`: of a touch.

    Raises `struct.error` where the data of a touch can't be one.
    """
    if head.kind == Kind.REMOVAL:
        return None
    fixed = head.stamp, head.checksum, head.arrived, head.metadata
    if head.kind != Kind.TOUCH:
        return Entry(place, len(head.metadata), head.kind, head.length, *fixed)
    number, offset, inner, kind, length = _TOUCH.unpack(data)
    return Entry(
        (number, offset),
        inner,
        kind & _KIND,
        length,
        *fixed,
        head=place,
        alone=kind & _ALONE > 0,
        damaged=(number, offset) == NOWHERE,
    )


@accelerated
def key_of(name: str) -> bytes:
    """The key of a name; raises `UnicodeEncodeError` for what can be none."""
    encoded = name.encode()
    partition = b"e" + (zlib.crc32(encoded) >> 16).to_bytes(2)
    length = len(encoded)
    if length == 64:
        form, digits = _HEX, name
    elif length == 40:
        form, digits = _SHORT_HEX, name
    elif length == 69 and name.startswith("chunk"):
        form, digits = _CHUNK, name[5:]
    else:
        return partition + encoded
    try:
        packed = bytes.fromhex(digits)
    except ValueError:
        return partition + encoded
    # Upper-case digits and spaces are read too, but would not come back.
    return partition + (form + packed if packed.hex() == digits else encoded)


def name_of(key: bytes) -> str:
    """The name that `key_of` packed."""
    form = key[3]
    if form > 2:
        return key[3:].decode()
    digits = key[4:].hex()
    return "chunk" + digits if form == 2 else digits
