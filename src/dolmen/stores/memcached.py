"""`memcached://HOST:PORT[,HOST:PORT...][/PREFIX]`: a driver for the memory of memcached servers.

For caches, and as the neighbour that forgets: memcached drops whatever it likes when its
memory is full, and everything when it ends.

What it promises:

* **Not durable**: it never counts as a copy. A blob whose entry was dropped is not there;
  one that lacks a part answers as damaged.
* **A swap is one key after the other**: the entry by compare-and-swap, and what belongs to
  it only if that went well. So digests are made by listing.
* **Lists** read every key (`lru_crawler metadump`) and are sorted here, in memory.
* **Full** (`-M`: no eviction): writes raise `Full`.
* **Restart, no answer in time**: what was on its way fails; the next request connects again.

Several servers share the partitions, with one copy of each. Needs memcached 1.6 (meta
commands), with its LRU crawler on as it is by default. No client library for asyncio that is
maintained speaks these commands.

Read first: `dolmen.stores.driver`, `dolmen.stores.connection`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from dolmen.errors import BadSetting, DolmenError, Full, TooLarge, Unavailable
from dolmen.store import Capabilities, Condition
from dolmen.stores.connection import PATIENCE, Connection, Lane, Place, Request, at, place_of
from dolmen.stores.driver import HEAD, Change
from dolmen.stores.keyed import KeyedStore, open_keyed
from dolmen.stores.secrets import without_secrets

_URL = re.compile(r"memcached://([^/?#]+)/?([A-Za-z0-9_-]{1,64})?/?")
_PAGE = 256
_BUSY = 200
"""How often a server may say that it is listing for somebody else."""
_MOMENT = 0.02
_LAST = (b"END", b"BUSY", b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")
Answer = tuple[list[bytes], bytes]
"""The words of a line, and the value behind it."""


class _Connection(Connection):
    async def reply(self, request: Request) -> Any:
        """See `Connection.reply`: an `Answer`, or lines of a request that has many."""
        lines: list[bytes] = []
        while True:
            line = await self.reader.readline()
            words = line.split() or [b""]
            if not line.endswith(b"\n"):
                raise EOFError
            if not request.many_lines or words[0] in _LAST:
                break
            lines.append(line)
        if words[0].endswith(b"ERROR"):
            return self._refusal(b" ".join(words).decode("latin-1"))
        if request.many_lines:
            return None if words[0] == b"BUSY" else lines
        value = b""
        if words[0] == b"VA":
            value = (await self.reader.readexactly(int(words[1]) + 2))[:-2]
        return words, value

    def _refusal(self, said: str) -> DolmenError:
        if "out of memory" in said.lower():
            return Full(f"{self.where} has no memory left and may not evict (-M)")
        if "too large" in said:
            return TooLarge(f"{self.where} takes no item of that size (see its -I)")
        return Unavailable(
            f"{self.where} did not understand ({said}); "
            "dolmen needs memcached 1.6 with its LRU crawler on"
        )


class _Server:
    """One server, asked over one connection by turns, and listed over another."""

    def __init__(self, place: Place, patience: float) -> None:
        self._where = f"memcached at {at(place)}"
        connect = partial(_Connection, self._where, place, patience)
        self._asks = Lane(connect, connections=1, most=64)
        self._lists = Lane(connect, connections=1, most=1)  # not answered behind other commands

    async def ask(self, *requests: Request) -> list[Answer]:
        """The answers to requests; raises the first error among them."""
        return _right(await self._asks.ask(requests))

    async def lines(self, command: bytes) -> list[bytes]:
        """The lines that answer `stats` or a listing."""
        for _ in range(_BUSY):
            [lines] = _right(await self._lists.ask([Request(command, many_lines=True)]))
            if lines is not None:
                told: list[bytes] = lines
                return told
            await asyncio.sleep(_MOMENT)
        raise Unavailable(f"{self._where} is being listed by others all the time")

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of the connections."""
        await self._asks.aclose()
        await self._lists.aclose()


def _right(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


class MemcachedDriver:
    """Keeps values in these servers, under keys that begin with a prefix."""

    capabilities = Capabilities(
        durable=False, largest=1 << 30, digests=False, ordered=False, conflicts=True
    )
    part_size = 1 << 19
    """A server takes items of up to 1 MiB, its own bookkeeping included."""

    def __init__(self, places: Sequence[Place], prefix: str, patience: float) -> None:
        self._servers = [_Server(place, patience) for place in places]
        self._prefix = prefix.encode() + b":"

    def _server(self, key: bytes) -> _Server:
        return self._servers[int(key[1:5], 16) % len(self._servers)]

    async def get(self, keys: Sequence[bytes], *, head: bool = False) -> list[bytes | None]:
        """See `Driver.get`."""
        requests = [Request(b"mg %b v\r\n" % (self._prefix + key)) for key in keys]
        answers = await self._server(keys[0]).ask(*requests)
        size = HEAD if head else None
        return [value[:size] if words[0] == b"VA" else None for words, value in answers]

    async def swap(self, changes: Sequence[Change], **_grows: bool) -> list[bytes | None] | None:
        """See `Driver.swap`."""
        (key, old, new), *others = changes
        mode = b"ME"  # add
        if old is not None:
            ask = Request(b"mg %b v c\r\n" % (self._prefix + key))
            [(words, value)] = await self._server(key).ask(ask)
            if words[0] != b"VA" or not value.startswith(old):
                return await self.get([change.key for change in changes], head=True)
            mode = next(b"C" + word[1:] for word in words[2:] if word[:1] == b"c")
        if not await self._write(key, new, mode):
            return await self.get([change.key for change in changes], head=True)
        for key, _, new in others:
            await self._write(key, new)
        return None

    async def _write(self, key: bytes, value: bytes | memoryview | None, mode: bytes = b"") -> bool:
        """Store or forget a value; whether `mode` let it."""
        place = self._prefix + key
        if value is None:
            command = b"md %b %b\r\n" % (place, mode)
        else:
            command = b"ms %b %d %b\r\n%b\r\n" % (place, len(value), mode, bytes(value))
        [(words, _)] = await self._server(key).ask(Request(command, writes=True))
        return words[0] == b"HD"

    async def set(self, key: bytes, value: bytes | memoryview) -> None:
        """See `Driver.set`."""
        await self._write(key, value)

    async def delete(self, keys: Sequence[bytes]) -> None:
        """See `Driver.delete`."""
        await asyncio.gather(*(self._write(key, None) for key in keys))

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See `Driver.scan`."""
        own = self._prefix + start[:1]
        found: set[bytes] = set()
        for server in self._servers:
            for line in await server.lines(b"lru_crawler metadump hash\r\n"):
                item = unquote_to_bytes(line.partition(b" ")[0].removeprefix(b"key="))
                if item.startswith(own):
                    found.add(item.removeprefix(self._prefix))
        keys = sorted(key for key in found if start <= key < stop)
        for first in range(0, len(keys), _PAGE):
            page = keys[first : first + _PAGE]
            values = await asyncio.gather(*(self.get([key], head=True) for key in page))
            pairs = zip(page, values, strict=True)
            yield [(key, value) for key, [value] in pairs if value is not None]

    async def condition(self) -> Condition:
        """See `Driver.condition`: memory, and whether some was needed for something else."""
        used = total = evicted = 0
        for server in self._servers:
            words = (line.split() for line in await server.lines(b"stats\r\n"))
            stats = {word[1]: word[2] for word in words if len(word) == 3}
            used += int(stats.get(b"bytes", 0))
            total += int(stats.get(b"limit_maxbytes", 0))
            evicted += int(stats.get(b"evictions", 0))
        remarks = ["memcached is not durable: a restart empties it"]
        if evicted:
            remarks.append(f"memcached dropped {evicted} items for want of memory")
        return Condition(max(total - used, 0), total, remarks=remarks)

    async def aclose(self) -> None:
        """See `Driver.aclose`."""
        for server in self._servers:
            await server.aclose()


async def open_url(url: str, *, patience: float = PATIENCE, **options: Any) -> KeyedStore:
    """Open the store of a URL; see `open_keyed`. `patience`: seconds a server may take.

    Raises `BadSetting` for a URL that can't be read.
    """
    found = _URL.fullmatch(url)
    try:
        places = [place_of(each, 11_211) for each in found[1].split(",")] if found else []
    except ValueError:
        places = []
    if found is None or not places:
        raise BadSetting(
            f"{without_secrets(url)!r} names no memcached: write memcached://HOST:PORT, several"
            " HOST:PORT with commas, and perhaps /PREFIX of letters and digits"
        )
    return await open_keyed(MemcachedDriver(places, found[2] or "dolmen", patience), **options)
