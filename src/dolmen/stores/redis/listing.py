"""Listing: pages of the sorted sets, several asked ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator

from dolmen.errors import Corrupt
from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.store import BlobInfo
from dolmen.stores.redis.layout import Keys, member, read
from dolmen.stores.redis.link import Link
from dolmen.stores.redis.scripts import LIST

_AHEAD = 8
"""Pages on their way, of 256 KiB or 500 names each at most."""
_BEHIND_ALL = b"\xff"
"""Behind every name."""


class Listing:
    """One listing of a store. The arguments are those of `BlobStore.list`."""

    def __init__(
        self,
        link: Link,
        keys: Keys,
        partitions: Iterable[int],
        after: str | None,
        prefix: str,
        *,
        tombstones: bool,
    ) -> None:
        self._link, self._keys = link, keys
        self._prefix, self._tombstones = prefix.encode(), tombstones
        self._spans = _spans(partitions, after)

    async def __aiter__(self) -> AsyncIterator[BlobInfo]:
        pages: deque[tuple[int, bytes, asyncio.Future[list[bytes]]]] = deque()
        try:
            while True:
                while len(pages) < _AHEAD and (span := next(self._spans, None)):
                    tag, low, high = span
                    pages.append((tag, high, self._page(tag, low, high)))
                if not pages:
                    return
                tag, high, page = pages.popleft()
                last, *fronts = await page
                if last:
                    pages.appendleft((tag, high, self._page(tag, b"(" + last, high)))
                for front in fronts:
                    if (info := self._shown(front)) is not None:
                        yield info
        finally:
            for *_, page in pages:
                page.cancel()

    def _page(self, tag: int, low: bytes, high: bytes) -> asyncio.Future[list[bytes]]:
        keys = self._keys
        return self._link.ask(
            tag,
            b"EVALSHA",
            LIST,
            1,
            keys.order(tag),
            keys.entries(tag),
            low,
            high,
            self._prefix,
        )

    def _shown(self, front: bytes) -> BlobInfo | None:
        try:
            info = read(front).info
        except Corrupt:  # who asks for it is told
            return None
        return info if self._tombstones or info.kind != Kind.TOMBSTONE else None


def _spans(partitions: Iterable[int], after: str | None) -> Iterator[tuple[int, bytes, bytes]]:
    """Runs of partitions within a tag: the tag, and the bounds of their members."""
    begin = partition_of(after) if after is not None else 0
    first = last = -1
    for partition in partitions:
        if partition < begin:
            continue
        if first >= 0 and (partition != last + 1 or partition >> 8 != first >> 8):
            yield _span(first, last, after)
            first = -1
        first = partition if first < 0 else first
        last = partition
    if first >= 0:
        yield _span(first, last, after)


def _span(first: int, last: int, after: str | None) -> tuple[int, bytes, bytes]:
    low = b"[%04x" % first
    if after is not None and partition_of(after) == first:
        low = b"(" + member(after)
    return first >> 8, low, b"(%04x" % last + _BEHIND_ALL
