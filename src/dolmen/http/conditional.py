"""Conditional requests by entity tag (RFC 9110, 8.8.3 and 13)."""

from __future__ import annotations

import re

from dolmen.http.messages import Headers
from dolmen.http.problems import HTTPError

_TAGS = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def not_modified(headers: Headers, etag: bytes) -> bool:
    """Whether a GET or HEAD is to be answered 304: If-None-Match names `etag` (with its quotes),
    weak or strong, or is "*".
    """
    value = headers.get(b"if-none-match")
    if value is None:
        return False
    opaque = etag.removeprefix(b"W/")
    return value == b"*" or any(tag.removeprefix(b"W/") == opaque for tag in _TAGS.findall(value))


def refuse_conditions(headers: Headers) -> None:
    """Refuse a write that is to happen only while something else is so.

    Raises HTTPError 412: nothing here could look and write in one step, and a condition
    that is not kept must not be passed over (RFC 9110, 13.1). If-None-Match is let pass,
    since no write replaces other content.
    """
    for name in (b"if-match", b"if-unmodified-since"):
        if name in headers:
            raise HTTPError(
                412,
                f"Writes under a condition ({name.decode()}) are not done here; a name keeps one "
                "content, so none is needed to protect it. Leave the header out.",
            )


def range_applies(headers: Headers, etag: bytes) -> bool:
    """Whether the Range header counts: no If-Range, or one with exactly this strong tag.

    A date in If-Range never matches: entity tags say more.
    """
    value = headers.get(b"if-range")
    return value is None or (value == etag and not etag.startswith(b"W/"))
