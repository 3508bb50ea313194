"""`redis://`, `rediss://` (TLS) and `redis+cluster://`: a driver for Redis, with hiredis.

    redis://[[user]:password@]host[:port][/database][?prefix=dolmen]
    redis+cluster://[[user]:password@]host[:port][,host[:port]...][?prefix=dolmen]

What it promises:

* **Durable** only where Redis flushes every write before it answers (`redis_server`). A
  failover may lose writes all the same: replicas of Redis follow after the answer.
* **Atomic**: a swap is one script on one server.
* **Full** (`maxmemory` with noeviction): what grows raises `Full`; the rest goes on. A
  policy that evicts loses blobs, and digests may go on counting them.
* **Restart or failover**: what was on its way fails; nothing is repeated.

Every key carries one of 256 hash tags, the first two digits of its partition, so a cluster keeps
what belongs to a name on one server. For each tag there is a sorted set (all scores 0) of
the keys that were swapped in, for `scan`:

    dolmen:{a7}:KEY    a value
    dolmen:{a7}:       the order

Read first: `dolmen.stores.driver`, `dolmen.stores.redis_server`.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dolmen.store import Capabilities, Condition
from dolmen.stores.connection import PATIENCE
from dolmen.stores.driver import HEAD, Change, driver
from dolmen.stores.keyed import KeyedStore, open_keyed

if TYPE_CHECKING:
    from dolmen.stores.redis_server import Command

_PAGE = 256
_SWAP = b"""
-- KEYS: the order, then the keys. ARGV: 1 where it grows, the length of a head, then two for
-- each key, what it has to begin with and what it is to be: empty for none, else behind "=".
local function there(key) return redis.call('EXISTS', key) == 1 end
for n = 2, #KEYS do
  local old = ARGV[2 * n - 1]
  local same = not there(KEYS[n])
  if old ~= '' then
    same = not same and redis.call('GETRANGE', KEYS[n], 0, #old - 2) == string.sub(old, 2)
  end
  if not same then
    local heads = {}
    for m = 2, #KEYS do
      heads[m - 1] = there(KEYS[m]) and redis.call('GETRANGE', KEYS[m], 0, ARGV[2] - 1)
    end
    return heads
  end
end
-- Redis refuses what takes memory when it is full, but only as a script's first write. So the
-- entry comes first, and what does not grow begins with a DEL.
if ARGV[1] == '' then redis.call('DEL', KEYS[2]) end
for n = 2, #KEYS do
  local new = ARGV[2 * n]
  if new == '' then
    redis.call('UNLINK', KEYS[n])
    redis.call('ZREM', KEYS[1], KEYS[n])
  else
    redis.call('SET', KEYS[n], string.sub(new, 2))
    redis.call('ZADD', KEYS[1], 0, KEYS[n])
  end
end
return 1
"""
_SWAP_NAME = hashlib.sha1(_SWAP, usedforsecurity=False).hexdigest().encode()


class RedisDriver:
    """Keeps values in the Redis of an address (`dolmen.stores.redis_server`)."""

    part_size = 1 << 20

    def __init__(self, url: str, patience: float) -> None:
        from dolmen.stores.redis_server import Servers
        from dolmen.stores.redis_settings import parse

        address = parse(url)
        self.capabilities = Capabilities(
            durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
        )
        self._servers = Servers(address, _SWAP, self._durable, patience)
        prefix = address.prefix.encode()
        self._spaces = [b"%b:{%02x}:" % (prefix, tag) for tag in range(256)]

    def _durable(self, durable: bool) -> None:
        self.capabilities = replace(self.capabilities, durable=durable)

    async def get(self, keys: Sequence[bytes], *, head: bool = False) -> list[bytes | None]:
        """See `Driver.get`."""
        tag = int(keys[0][1:3], 16)
        space = self._spaces[tag]
        if head:
            commands: list[Command] = [(b"GETRANGE", space + key, 0, HEAD - 1) for key in keys]
        else:
            commands = [(b"GET", space + key) for key in keys]
        lane = "bulk" if keys[0][:1] == b"p" else "reads"
        return [value or None for value in await self._servers.ask(tag, commands, lane)]

    async def swap(
        self, changes: Sequence[Change], *, grows: bool = True
    ) -> list[bytes | None] | None:
        """See `Driver.swap`."""
        tag = int(changes[0].key[1:3], 16)
        space = self._spaces[tag]
        command: list[bytes | int] = [b"EVALSHA", _SWAP_NAME, 1 + len(changes), space]
        command += [space + change.key for change in changes]
        command += [b"1" if grows else b"", HEAD]
        for _, old, new in changes:
            command.append(b"" if old is None else b"=" + old)
            command.append(b"" if new is None else b"".join((b"=", new)))
        [reply] = await self._servers.ask(tag, [tuple(command)], "writes")
        return None if reply == 1 else reply

    async def set(self, key: bytes, value: bytes | memoryview) -> None:
        """See `Driver.set`."""
        tag = int(key[1:3], 16)
        await self._servers.ask(tag, [(b"SET", self._spaces[tag] + key, value)], "bulk")

    async def delete(self, keys: Sequence[bytes]) -> None:
        """See `Driver.delete`."""
        tag = int(keys[0][1:3], 16)
        await self._servers.ask(tag, [(b"UNLINK", self._spaces[tag] + key) for key in keys], "bulk")

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See `Driver.scan`."""
        for tag in range(int(start[1:3], 16), int(stop[1:3], 16) + 1):
            space = self._spaces[tag]
            low, high = b"[" + space + start, b"(" + space + stop
            while True:
                page = (b"ZRANGEBYLEX", space, low, high, b"LIMIT", 0, _PAGE)
                [members] = await self._servers.ask(tag, [page], "reads")
                if members:
                    keys = [member[len(space) :] for member in members]
                    values = await self.get(keys, head=True)
                    # What went meanwhile is left out.
                    found = zip(keys, values, strict=True)
                    yield [(key, value) for key, value in found if value is not None]
                    low = b"(" + members[-1]
                if len(members) < _PAGE:
                    break

    async def condition(self) -> Condition:
        """See `Driver.condition`."""
        return await self._servers.condition()

    async def aclose(self) -> None:
        """See `Driver.aclose`."""
        await self._servers.aclose()


async def open_url(url: str, *, patience: float = PATIENCE, **options: Any) -> KeyedStore:
    """Open the store of a URL; see `open_keyed`. `patience`: seconds a server may take.

    Raises `BadSetting` for a URL that can't be read, where hiredis is not installed, and where
    the server refuses the password or the database.
    """
    driver("hiredis", extra="redis")
    return await open_keyed(RedisDriver(url, patience), **options)
