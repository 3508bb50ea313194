"""One byte range of a whole (RFC 9110, 14)."""

from __future__ import annotations

import re

from dolmen.http.problems import HTTPError

_RANGE = re.compile(rb"bytes=[ \t]*([0-9]{0,99})-([0-9]{0,99})[ \t]*\Z", re.IGNORECASE)


def byte_range(value: bytes | None, size: int) -> tuple[int, int] | None:
    """The (start, end) a Range header asks for of `size` bytes, `end` exclusive.

    None when all of it should be sent: no header, another unit, several ranges, or what
    is no range at all, all of which a server may ignore. Raises HTTPError 416,
    with the Content-Range that tells the size, when the range lies outside.
    """
    if value is None:
        return None
    match = _RANGE.match(value)
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        if not last:
            return None
        suffix = int(last)
        if suffix and size:
            return max(0, size - suffix), size
        raise _unsatisfiable(size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise _unsatisfiable(size)
    return start, min(size, int(last) + 1) if last else size


def content_range(start: int, end: int, size: int) -> bytes:
    """The Content-Range value of a 206 with the bytes from `start` up to `end`, exclusive."""
    return b"bytes %d-%d/%d" % (start, end - 1, size)


def _unsatisfiable(size: int) -> HTTPError:
    return HTTPError(
        416,
        f"The range lies outside the {size} bytes there are.",
        [(b"Content-Range", b"bytes */%d" % size)],
    )
