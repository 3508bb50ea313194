"""Byte ranges and entity tags, by the letter of RFC 9110."""

from __future__ import annotations

import pytest

from dolmen.http import Headers, HTTPError
from dolmen.http.conditional import (
    byte_range,
    content_range,
    not_modified,
    range_applies,
    selects,
)


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        (None, 10, None),
        (b"bytes=0-", 10, (0, 10)),
        (b"bytes=0-0", 10, (0, 1)),
        (b"bytes=2-5", 10, (2, 6)),
        (b"Bytes=2-5", 10, (2, 6)),
        (b"bytes= 2-5 ", 10, (2, 6)),
        (b"bytes=9-", 10, (9, 10)),
        (b"bytes=2-500", 10, (2, 10)),
        (b"bytes=2-99999999999999999999999999", 10, (2, 10)),
        (b"bytes=0000000000000000000000002-0000000000000000000000005", 10, (2, 6)),
        (b"bytes=2-" + b"9" * 10_000, 10, None),
        (b"bytes=-3", 10, (7, 10)),
        (b"bytes=-30", 10, (0, 10)),
        (b"bytes=10-", 10, 416),
        (b"bytes=10-20", 10, 416),
        (b"bytes=-0", 10, 416),
        (b"bytes=0-", 0, 416),
        (b"bytes=-5", 0, 416),
        (b"bytes=99999999999999999999999999-", 10, 416),
        (b"bytes=5-2", 10, None),
        (b"bytes=-", 10, None),
        (b"bytes=", 10, None),
        (b"bytes=a-b", 10, None),
        (b"bytes=0-1,3-4", 10, None),
        (b"items=0-1", 10, None),
        (b"bytes 0-1", 10, None),
        (b"bytes=+1-2", 10, None),
        (b"bytes=0x1-2", 10, None),
    ],
)
def test_byte_range(value, size, expected) -> None:
    if expected == 416:
        with pytest.raises(HTTPError) as caught:
            byte_range(value, size)
        assert caught.value.status == 416
        assert caught.value.headers == [(b"Content-Range", b"bytes */%d" % size)]
    else:
        assert byte_range(value, size) == expected


def test_content_range() -> None:
    assert content_range(2, 6, 10) == b"bytes 2-5/10"


@pytest.mark.parametrize(
    ("value", "etag", "named"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'W/"a"', b'W/"a"', True),
        (b'"b", "a"', b'"a"', True),
        (b'"b","a"', b'"a"', True),
        (b'"b", W/"a"', b'"a"', True),
        (b"*", b'"a"', True),
        (b" * ", b'"a"', True),
        (b'"b"', b'"a"', False),
        (b"a", b'"a"', False),
        (b"", b'"a"', False),
        (b'"ab"', b'"a"', False),
        (b'"a,b"', b'"a,b"', True),
    ],
)
def test_entity_tags(value, etag, named) -> None:
    assert not_modified(Headers({b"if-none-match": value.strip()}), etag) is named


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ({b"if-modified-since": b"Thu, 01 Jan 2026 00:00:10 GMT"}, True),
        ({b"if-modified-since": b"Thursday, 01-Jan-26 00:00:11 GMT"}, True),
        ({b"if-modified-since": b"Thu Jan  1 00:00:10 2026"}, True),
        ({b"if-modified-since": b"Thu, 01 Jan 2026 00:00:09 GMT"}, False),
        ({b"if-modified-since": b"yesterday"}, False),
        ({b"if-modified-since": b"\xff"}, False),
        ({b"if-modified-since": b"Thu, 99 Jan 2026 00:00:09 GMT"}, False),
        ({b"if-none-match": b'"b"', b"if-modified-since": b"Fri, 01 Jan 2027 00:00:00 GMT"}, False),
        ({b"if-none-match": b'"a"', b"if-modified-since": b"Thu, 01 Jan 1970 00:00:00 GMT"}, True),
    ],
)
def test_if_modified_since_counts_where_there_is_no_tag(lines, expected) -> None:
    assert not_modified(Headers(lines), b'"a"', 1_767_225_610) is expected
    assert selects(Headers(lines))
    assert not selects(Headers({b"host": b"a"}))


@pytest.mark.parametrize(
    ("value", "etag", "applies"),
    [
        (None, b'"a"', True),
        (b'"a"', b'"a"', True),
        (b'"b"', b'"a"', False),
        (b'W/"a"', b'W/"a"', False),
        (b"Tue, 01 Jan 2030 00:00:00 GMT", b'"a"', False),
    ],
)
def test_if_range(value, etag, applies) -> None:
    headers = Headers({b"if-range": value} if value else {})
    assert range_applies(headers, etag) is applies
    assert not not_modified(headers, etag)
