"""What the client tells of objects, and how a file's name and type travel with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

FILE_NAME = "x-file-name"
MIME_TYPE = "x-mime-type"
_PLAIN = " !#$&'()+,-.;=@[]^_`{}~"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An object that was stored: its id, its size in bytes, and how many copies stand."""

    id: str
    size: int
    copies: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the server knows of an object. `size` is in bytes, `metadata` by lower-case name.

    `copies` stand of `wanted`; `servers` tells of each server what it has.
    """

    id: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    copies: int = 0
    wanted: int = 0
    servers: Sequence[Mapping[str, Any]] = ()

    @property
    def degraded(self) -> bool:
        """Whether it has fewer copies than its group wants."""
        return self.copies < self.wanted

    @property
    def file_name(self) -> str | None:
        """The name of the file it was uploaded from, without any folder."""
        return decode_file_name(self.metadata.get(FILE_NAME))

    @property
    def mime_type(self) -> str | None:
        """Its media type, as the uploader gave it."""
        return self.metadata.get(MIME_TYPE)


def metadata_headers(
    file_name: str | None, mime_type: str | None, metadata: Mapping[str, str]
) -> list[tuple[bytes, bytes]]:
    """The header fields of an upload; names of `metadata` begin with `x-`."""
    pairs = {name.lower(): value for name, value in metadata.items()}
    for name in pairs:
        if not name.startswith("x-") or name.startswith("x-dolmen-"):
            raise ValueError(f"metadata is named x-…, and not x-dolmen-…: {name!r} is not")
    if file_name is not None:
        # Percent-encoded (RFC 3986): a header field takes no line ends and no certain charset.
        pairs[FILE_NAME] = quote(os.fsencode(file_name), safe=_PLAIN)
    if mime_type is not None:
        pairs[MIME_TYPE] = mime_type
    return [(name.encode(), value.encode()) for name, value in pairs.items()]


def decode_metadata(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The metadata among the header fields of an answer."""
    return {
        name.decode(): value.decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(b"x-") and not name.startswith(_OURS)
    }


_OURS = (b"x-dolmen-", b"x-content-type-options", b"x-request-id")


def decode_file_name(value: str | None) -> str | None:
    """The file name in metadata, made safe to create: no folder, nothing hidden, no control.

    Bytes that are no UTF-8 come as `os.fsdecode` gives them.
    """
    if value is None:
        return None
    name = unquote(value, errors="surrogateescape").replace("\\", "/").rpartition("/")[2]
    safe = (each for each in name.lstrip(".") if each.isprintable() or "\udc80" <= each <= "\udcff")
    return "".join(safe)[:200] or None
