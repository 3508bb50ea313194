"""Walking through a bucket partition by partition."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence

from dolmen.errors import Unavailable
from dolmen.stores.objects.bucket import PAGE, Bucket

_DIGITS = frozenset("0123456789abcdef")


async def walk(
    bucket: Bucket, top: str, wanted: Sequence[int], after: str | None = None
) -> AsyncIterator[tuple[int, Sequence[str]]]:
    """Every path under `top/PPPP` for each wanted partition that holds any.

    `wanted` ascends. Where listings are ordered, `after` (a path) leaves out what comes
    before it; the requests are no more than those of one listing from there to the end, and
    fewer where leaps over what is not wanted save any.
    """
    if len(wanted) < 2 or not bucket.ordered:
        for partition in wanted if len(wanted) < 2 else await _there(bucket, top, wanted):
            if paths := await bucket.all(f"{top}/{partition:04x}"):
                yield partition, paths
        return
    index, current = 0, -1
    gathered: list[str] = []
    start = after
    while index < len(wanted):
        leaps = False
        async for page in bucket.list(top, start or f"{top}/{wanted[index]:04x}"):
            for path in page:
                digits = path[len(top) + 1 : len(top) + 5]
                partition = int(digits, 16) if _DIGITS.issuperset(digits) else current
                if partition != current:
                    if gathered:
                        yield current, gathered
                        gathered = []
                    if partition < current:
                        raise Unavailable(
                            f"{bucket.url} does not list in order, which dolmen needs"
                        )
                    current = partition
                    index = bisect_left(wanted, partition, index)
                    if index == len(wanted):
                        return
                if partition == wanted[index]:
                    gathered.append(path)
            leaps = current < wanted[index] and len(page) == PAGE
            if leaps:
                break
        if not leaps:
            break
        start = None
    if gathered:
        yield current, gathered


async def _there(bucket: Bucket, top: str, wanted: Sequence[int]) -> list[int]:
    """The wanted partitions that have a folder."""
    folders = await bucket.folders(top)
    there = sorted(int(name, 16) for name in folders if _DIGITS.issuperset(name))
    return [one for one in there if one in wanted[(at := bisect_left(wanted, one)) : at + 1]]
