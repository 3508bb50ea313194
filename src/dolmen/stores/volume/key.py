"""Keys of the index: a name's partition, and the name as short as it goes.

Two bytes of partition (big-endian), then the name in UTF-8; but of 64 or 40
lower-case hex digits, bare or (64 of them) behind `chunk`, one byte that says which
(0, 1, 2) and the 32 or 20 bytes they stand for. Most names are of these forms, and
the key is most of what the index takes on disk. So within a partition keys are not
in the order of the names; who lists sorts each partition.
"""

from __future__ import annotations

import zlib

_PLAIN, _SHORT, _CHUNK = b"\0", b"\1", b"\2"
_PREFIX = "chunk"


def key_of(name: str) -> bytes:
    """The key of a name; raises `UnicodeEncodeError` for what can be none."""
    encoded = name.encode()
    partition = (zlib.crc32(encoded) >> 16).to_bytes(2, "big")
    length = len(encoded)
    if length == 64:
        form, digits = _PLAIN, name
    elif length == 40:
        form, digits = _SHORT, name
    elif length == 70 and name.startswith(_PREFIX):
        form, digits = _CHUNK, name[6:]
    else:
        return partition + encoded
    try:
        packed = bytes.fromhex(digits)
    except ValueError:
        return partition + encoded
    # Upper-case digits and spaces are read too, but would not come back.
    return partition + (form + packed if packed.hex() == digits else encoded)


def name_of(key: bytes) -> str:
    """The name `key_of` packed."""
    form = key[2]
    if form > 2:
        return key[2:].decode()
    digits = key[3:].hex()
    return _PREFIX + digits if form == 2 else digits
