"""Conditional requests and byte ranges (RFC 9110, 8.8, 13 and 14)."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from dolmen.http.messages import Headers, HTTPError

_TAGS = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_RANGE = re.compile(rb"bytes=[ \t]*([0-9]{0,99})-([0-9]{0,99})[ \t]*\Z", re.IGNORECASE)
_SELECTING = frozenset((b"range", b"if-none-match", b"if-modified-since"))


def selects(headers: Headers) -> bool:
    """Whether a GET with these headers may get something else than the whole."""
    return not _SELECTING.isdisjoint(headers)


def not_modified(headers: Headers, etag: bytes, modified: int | None = None) -> bool:
    """Whether a GET or HEAD is to be answered 304.

    If-None-Match names `etag` (with its quotes), weak or strong, or is "*"; without it,
    If-Modified-Since is not before `modified`, the Last-Modified in seconds since the epoch.
    """
    value = headers.get(b"if-none-match")
    if value is not None:
        opaque = etag.removeprefix(b"W/")
        tags = _TAGS.findall(value)
        return value == b"*" or any(tag.removeprefix(b"W/") == opaque for tag in tags)
    since = headers.get(b"if-modified-since")
    if since is None or modified is None:
        return False
    try:
        date = parsedate_to_datetime(since.decode("ascii"))
        return modified <= (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # RFC 9110, 13.1.3: what is no date is ignored
        return False


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
                f"Conditional writes ({name.decode()}) are not supported; a name keeps one "
                "content, so none is needed to protect it. Leave the header out.",
            )


def range_applies(headers: Headers, etag: bytes) -> bool:
    """Whether the Range header counts: no If-Range, or one with exactly this strong tag.

    A date in If-Range never matches: entity tags say more.
    """
    value = headers.get(b"if-range")
    return value is None or (value == etag and not etag.startswith(b"W/"))


def byte_range(value: bytes | None, size: int) -> tuple[int, int] | None:
    """The (start, end) a Range header asks for of `size` bytes, `end` exclusive.

    None when all of it should be sent: no header, another unit, several ranges, or what
    is no range at all, all of which a server may ignore. Raises HTTPError 416 with the size
    as Content-Range when the range lies outside.
    """
    match = None if value is None else _RANGE.match(value)
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if first:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= size:
        where = [(b"Content-Range", b"bytes */%d" % size)]
        raise HTTPError(416, f"The range lies outside the {size} bytes there are.", where)
    return start, end


def content_range(start: int, end: int, size: int) -> bytes:
    """The Content-Range value of a 206 with the bytes from `start` up to `end`, exclusive."""
    return b"bytes %d-%d/%d" % (start, end - 1, size)
