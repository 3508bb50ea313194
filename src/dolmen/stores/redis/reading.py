"""Reading: fronts of entries, and the parts of large blobs a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from dolmen.payload import Piece
from dolmen.record import HEAD_MAX
from dolmen.stores.redis.connection import Ask
from dolmen.stores.redis.layout import PART, SUM_SIZE, Keys, front_size, part_sum
from dolmen.stores.redis.link import Link

AT_ONCE = 4
"""Parts of one blob that are on their way: 4 MiB."""
_MOSTLY = 512
"""Bytes within which a front is but for much metadata."""
_AT_MOST = HEAD_MAX + 8


async def fronts(link: Link, keys: Keys, names: Iterable[str]) -> list[bytes]:
    """What the entries of these names begin with: the front at least, empty where none stands."""
    places = [keys.entry(name) for name in names]
    asked = [link.ask(tag, b"GETRANGE", key, 0, _MOSTLY - 1) for tag, key in places]
    found = []
    for (tag, key), ask in zip(places, asked, strict=True):
        value: bytes = await ask
        if front_size(value) > len(value) == _MOSTLY:
            value = await link.ask(tag, b"GETRANGE", key, 0, _AT_MOST)
        found.append(value)
    return found


class Parts:
    """The parts of a stored blob: `key` gives that of a part, `sums` are their checksums."""

    def __init__(self, link: Link, tag: int, key: Callable[[int], bytes], sums: memoryview) -> None:
        self._link, self._tag, self._key, self._sums = link, tag, key, sums

    async def read(
        self, start: int, stop: int, broken: Callable[[int], Awaitable[Exception]]
    ) -> AsyncIterator[Piece]:
        """The checked bytes of a range, out of the parts it touches.

        Raises what `broken` makes of the number of a part that is missing or damaged.
        """
        numbers = range(start // PART, -(-stop // PART))
        ahead: deque[Ask] = deque()
        for number in numbers:
            while len(ahead) < AT_ONCE and (following := number + len(ahead)) in numbers:
                ahead.append(self._link.ask(self._tag, b"GET", self._key(following), bulk=True))
            part = await ahead.popleft()
            sum_at = number * SUM_SIZE
            if part is None or part_sum(part) != self._sums[sum_at : sum_at + SUM_SIZE]:
                raise await broken(number)
            at = number * PART
            yield memoryview(part)[max(start - at, 0) : stop - at]
