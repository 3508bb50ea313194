"""How blobs lie in Redis: the keys, and what is under them.

For each of 256 hash tags (`partition >> 8`, in hex, in braces, so that a cluster keeps
the keys of a tag on one node), behind the store's prefix:

    dolmen:{a7}:order       sorted set, all scores 0: partition in hex and name of every entry
    dolmen:{a7}:digests     hash: partition in hex to count, size and XOR (`dolmen.digests`)
    dolmen:{a7}:e:NAME      string: an entry
    dolmen:{a7}:p:UPLOAD:N  string: part N of a large blob, 1 MiB each but the last
    dolmen:{00}:notes       hash: the store's notes

An entry is its *front* and its body. The front: 2 bytes with its own length (these
included, little-endian), 1 byte that is 1 in quarantine, and the head of a record
(`dolmen.record`) whose sequence is the second of arrival and whose owner is the upload
that wrote the parts, or zero. The body is the data of a blob up to 64 KiB, or the CRC-32C
of every part. Entries in quarantine are in neither order nor digests.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

from dolmen.digests import entry_hash
from dolmen.errors import Corrupt
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.record import NOBODY, Kind, decode_head, encode_head
from dolmen.store import BlobInfo
from dolmen.stores.old_verdict import NO_CHECKSUM

INLINE = 65_536
"""The most bytes of data that lie in the entry itself."""
PART = 1 << 20
SUM_SIZE = 4
_LEAD = struct.Struct("<HB")
_SUM = struct.Struct("<I")


class Keys:
    """The keys of a store with this prefix."""

    def __init__(self, prefix: str) -> None:
        tags = [b"%b:{%02x}:" % (prefix.encode(), tag) for tag in range(256)]
        self.order = [tag + b"order" for tag in tags]
        self.digests = [tag + b"digests" for tag in tags]
        self.notes = tags[0] + b"notes"
        self._entries = [tag + b"e:" for tag in tags]
        self._parts = [tag + b"p:" for tag in tags]

    def entry(self, name: str) -> tuple[int, bytes]:
        """The tag and the key of a name's entry; raises `InvalidName`."""
        tag = partition_of(check_name(name)) >> 8
        return tag, self._entries[tag] + name.encode()

    def part(self, tag: int, upload: bytes, number: int) -> bytes:
        """The key of a part."""
        return b"%b%b:%d" % (self._parts[tag], upload.hex().encode(), number)

    def parts(self, tag: int, upload: bytes, count: int) -> list[bytes]:
        """The keys of so many parts."""
        return [self.part(tag, upload, number) for number in range(count)]


def member(name: str) -> bytes:
    """A name as it stands in the order."""
    return b"%04x%b" % (partition_of(name), name.encode())


def part_sum(part: bytes | memoryview) -> bytes:
    """The checksum of a part."""
    return _SUM.pack(crc32c(part))


@dataclass(slots=True)
class Entry:
    """What stands under a name. `upload` names its parts, zero where the body is the data."""

    info: BlobInfo
    upload: bytes = NOBODY
    damaged: bool = False
    front: bytes = b""
    """As it lies in Redis; set by `seal` and `read`."""

    @property
    def parts(self) -> int:
        """How many parts it has."""
        return -(-self.info.size // PART) if self.upload != NOBODY else 0

    def seal(self) -> Entry:
        """Make the front of the rest."""
        info = self.info
        head = encode_head(
            info.kind,
            info.name.encode(),
            info.metadata,
            info.size,
            info.stamp,
            info.checksum,
            arrived=info.arrived,
            owner=self.upload,
        )
        self.front = _LEAD.pack(_LEAD.size + len(head), self.damaged) + head
        return self

    def data(self, value: bytes) -> memoryview:
        """The checked data of an entry without parts; raises `Corrupt`."""
        data, info = memoryview(value)[len(self.front) :], self.info
        right = NO_CHECKSUM if info.kind == Kind.TOMBSTONE else checksum_of(data)
        if len(data) != info.size or right != info.checksum:
            raise Corrupt(f"the data of {info.name} in Redis fails its checksum")
        return data

    @property
    def counted(self) -> tuple[int, int, int]:
        """What it adds to the digests: entries, bytes, hash."""
        if self.damaged:
            return NOTHING
        info = self.info
        name = info.name.encode()
        return 1, info.size, entry_hash(name, info.stamp, info.kind, info.checksum, info.metadata)


NOTHING = (0, 0, 0)
"""What nothing adds to the digests."""


def front_size(value: bytes) -> int:
    """How many bytes of an entry that begins so are its front."""
    return int.from_bytes(value[:2], "little")


def read(value: bytes) -> Entry | None:
    """The entry that a value (or its front alone) says, None for an empty one; raises `Corrupt`."""
    if not value:
        return None
    head = decode_head(value, _LEAD.size)
    info = BlobInfo(
        head.name.decode(),
        head.length,
        head.kind,
        head.stamp,
        head.checksum,
        head.metadata,
        head.arrived,
    )
    return Entry(info, head.owner, bool(value[2]), value[: front_size(value)])
