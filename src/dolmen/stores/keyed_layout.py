"""How blobs lie under the keys of a driver. Read first: `dolmen.stores.driver`.

Every key is text and begins with a letter and a partition (4 hex digits), so that keys of
one letter ascend in list order:

    e PARTITION NAME           an entry
    d PARTITION                the digest of a partition: count, bytes, XOR (`dolmen.digests`)
    p PARTITION UPLOAD NUMBER  a part of a large blob: UPLOAD 32 hex digits, NUMBER 8
    u PARTITION UPLOAD         parts that no entry refers to: when they are due, their number
    n 0000 HASH                a note: 2 bytes length of its key, the key, the value; HASH is
                               32 hex digits of the key's BLAKE3

An entry is its *front* and the data of a blob of up to 64 KiB. The front: 2 bytes with its own
length (these included, little-endian), 1 byte that is 1 in quarantine, and the head of a record
(`dolmen.record`) with the second of arrival, whose owner is the upload that wrote the parts, or
zero. Two entries with equal fronts are the same write, so a swap compares fronts. Entries in
quarantine are not counted in the digest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from blake3 import blake3

from dolmen.digests import Slot, entry_hash
from dolmen.errors import Corrupt
from dolmen.names import checksum_of
from dolmen.record import NOBODY, Kind, decode_head, encode_head
from dolmen.store import NO_CHECKSUM, BlobInfo

INLINE = 65_536
"""The most bytes of data that lie in the entry itself."""
NOTES = b"n0000"
END = b"\xff"
"""Behind whatever begins alike."""
_LEAD = struct.Struct("<HB")
_SLOT = struct.Struct("<IQ16s")
MARK = struct.Struct(">QI")
"""When parts may go (seconds since 1970), and how many there are."""


def partition_key(letter: bytes, partition: int) -> bytes:
    """What the keys of a letter and partition begin with."""
    return b"%b%04x" % (letter, partition)


def entry_key(partition: int, name: str) -> bytes:
    """The key of an entry."""
    return b"e%04x%b" % (partition, name.encode())


def part_key(partition: int, upload: bytes, number: int) -> bytes:
    """The key of a part."""
    return b"p%04x%b%08x" % (partition, upload.hex().encode(), number)


def mark_key(partition: int, upload: bytes) -> bytes:
    """The key that says that no entry refers to the parts of an upload."""
    return b"u%04x%b" % (partition, upload.hex().encode())


def encode_slot(slot: Slot) -> bytes | None:
    """The digest of a partition; None for an empty one.

    An engine that evicts may have dropped it meanwhile, so more may go than is counted.
    """
    if slot.count <= 0:
        return None
    return _SLOT.pack(slot.count, max(slot.size, 0), slot.xor.to_bytes(16, "little"))


def decode_slot(value: bytes | None) -> Slot:
    """The digest of a partition."""
    if value is None:
        return Slot()
    count, size, xor = _SLOT.unpack(value)
    return Slot(count, size, int.from_bytes(xor, "little"))


def encode_note(key: str, value: bytes) -> tuple[bytes, bytes]:
    """The key and the value of a note."""
    name = key.encode()
    return NOTES + blake3(name).hexdigest(16).encode(), len(name).to_bytes(2) + name + value


def decode_note(value: bytes) -> tuple[str, bytes]:
    """The key and the value that were noted."""
    stop = 2 + int.from_bytes(value[:2])
    return value[2:stop].decode(), value[stop:]


def partition_in(key: bytes) -> int:
    """The partition in a key."""
    return int(key[1:5], 16)


@dataclass(slots=True)
class Entry:
    """What is kept under a name.

    `upload` names its parts, zero where `body` is the data, which is cut short in an entry
    that was read from a head. One that is `lost` can't be read: only its name is known.
    """

    info: BlobInfo
    upload: bytes = NOBODY
    damaged: bool = False
    body: bytes | memoryview = b""
    front: bytes = b""
    """As it is stored; set by `sealed` and `decode`."""
    lost: bool = False

    def sealed(self, stamp: int, arrived: int, metadata: bytes) -> Entry:
        """The entry with another stamp, time of arrival and metadata, ready to be stored."""
        info = replace(self.info, stamp=stamp, arrived=arrived, metadata=metadata)
        head = encode_head(
            info.kind,
            info.name.encode(),
            metadata,
            info.size,
            stamp,
            info.checksum,
            arrived=arrived,
            owner=self.upload,
        )
        front = _LEAD.pack(_LEAD.size + len(head), self.damaged) + head
        return Entry(info, self.upload, self.damaged, self.body, front)

    def encode(self) -> bytes:
        """The value of the entry's key."""
        return b"".join((self.front, self.body))

    def check_body(self) -> None:
        """Raise `Corrupt` unless the body is the data of an entry without parts."""
        info = self.info
        right = NO_CHECKSUM if info.kind == Kind.TOMBSTONE else checksum_of(self.body)
        if len(self.body) != info.size or right != info.checksum:
            raise Corrupt(f"the data of {info.name} fails its checksum")

    def count(self, slot: Slot, *, out: bool = False) -> None:
        """Take it into the digest of its partition, or out of it."""
        if not self.damaged:
            info = self.info
            name = info.name.encode()
            hashed = entry_hash(name, info.stamp, info.kind, info.checksum, info.metadata)
            (slot.drop if out else slot.add)(info.size, hashed)


def front_size(value: bytes) -> int:
    """How many bytes of an entry are its front."""
    return int.from_bytes(value[:2], "little")


def decode(key: bytes, value: bytes) -> Entry:
    """The entry under a key, whose value is this or begins so; front and all."""
    try:
        head = decode_head(value, _LEAD.size)
    except Corrupt:
        info = BlobInfo(key[5:].decode(), 0, Kind.BLOB, 0, NO_CHECKSUM)
        return Entry(info, damaged=True, front=value, lost=True)
    info = BlobInfo(
        head.name.decode(),
        head.length,
        head.kind,
        head.stamp,
        head.checksum,
        head.metadata,
        head.arrived,
    )
    size = front_size(value)
    return Entry(info, head.owner, bool(value[2]), memoryview(value)[size:], value[:size])
