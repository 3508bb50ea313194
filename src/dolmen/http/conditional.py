"""Conditional requests by entity tag (RFC 9110, 8.8.3 and 13)."""

from __future__ import annotations

import re

from dolmen.http.messages import Headers

_TAGS = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def matches_weakly(value: bytes, etag: bytes) -> bool:
    """Whether an If-None-Match value names `etag` (with its quotes), weak or strong, or is "*"."""
    if value == etag or value.strip() == b"*":
        return True
    opaque = etag.removeprefix(b"W/")
    return any(tag.removeprefix(b"W/") == opaque for tag in _TAGS.findall(value))


def matches_strongly(value: bytes, etag: bytes) -> bool:
    """Whether an If-Match value names `etag`, both being strong, or is "*"."""
    if value.strip() == b"*":
        return True
    return not etag.startswith(b"W/") and etag in _TAGS.findall(value)


def not_modified(headers: Headers, etag: bytes) -> bool:
    """Whether a GET or HEAD with these headers is to be answered 304."""
    value = headers.get(b"if-none-match")
    return value is not None and matches_weakly(value, etag)


def range_applies(headers: Headers, etag: bytes) -> bool:
    """Whether the Range header counts: no If-Range, or one with exactly this strong tag.

    A date in If-Range never matches: entity tags say more.
    """
    value = headers.get(b"if-range")
    return value is None or (value == etag and not etag.startswith(b"W/"))
