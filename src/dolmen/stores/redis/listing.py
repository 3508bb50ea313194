"""Listing: pages of the sorted sets, several under way at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import groupby, islice
from typing import NamedTuple

from dolmen.names import partition_of
from dolmen.stores.redis.layout import Keys, member
from dolmen.stores.redis.link import Link
from dolmen.stores.redis.reading import fronts

_PAGE = 256
_AHEAD = 8
"""Pages on their way."""


class Span(NamedTuple):
    """A run of partitions within a tag, as the bounds of their members."""

    tag: int
    low: bytes
    high: bytes


async def pages(
    link: Link, keys: Keys, spans: Iterator[Span], prefix: str
) -> AsyncIterator[list[bytes]]:
    """The fronts of the entries in these spans whose names begin so, page by page."""

    async def page(span: Span) -> tuple[list[bytes], Span | None]:
        members: list[bytes] = await link.ask(
            span.tag,
            *(b"ZRANGEBYLEX", keys.order[span.tag], span.low, span.high),
            *(b"LIMIT", 0, _PAGE),
        )
        names = [each[4:].decode() for each in members]
        found = await fronts(link, keys, (name for name in names if name.startswith(prefix)))
        full = len(members) == _PAGE
        return found, span._replace(low=b"(" + members[-1]) if full else None

    loop = asyncio.get_running_loop()
    ahead: deque[asyncio.Task[tuple[list[bytes], Span | None]]] = deque()
    try:
        while True:
            for span in islice(spans, _AHEAD - len(ahead)):
                ahead.append(loop.create_task(page(span)))
            if not ahead:
                return
            found, rest = await ahead[0]
            ahead.popleft()
            if rest is not None:
                ahead.appendleft(loop.create_task(page(rest)))
            yield found
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def spans_of(partitions: Iterable[int], after: str | None) -> Iterator[Span]:
    """Where these partitions lie, behind the place of `after`."""
    begin = partition_of(after) if after is not None else 0
    wanted = enumerate(partition for partition in partitions if partition >= begin)
    # Neighbours go up by one as their numbers do.
    for (tag, _), run in groupby(wanted, lambda each: (each[1] >> 8, each[1] - each[0])):
        first, *others = (partition for _, partition in run)
        low = b"[%04x" % first
        if after is not None and first == begin:
            low = b"(" + member(after)
        yield Span(tag, low, b"(%04x\xff" % (others or [first])[-1])  # \xff is behind every name
