"""`redis://`, `rediss://` (TLS) and `redis+cluster://`: a driver for Redis, with redis-py.

    redis://[[user]:password@]host[:port][/database][?prefix=dolmen]
    redis+cluster://[[user]:password@]host[:port][,host[:port]...][?prefix=dolmen]

What it promises:

* **Durable** only where Redis flushes every write before it answers. A failover may lose
  writes all the same: replicas of Redis follow after the answer.
* **Atomic**: a swap is one script on one server.
* **Full** (`maxmemory` with noeviction): what grows raises `Full`; the rest goes on. A
  policy that evicts loses blobs, and digests may go on counting them.
* **Restart or failover**: what was on its way fails; nothing is repeated.

Every key carries one of 256 hash tags, the first two digits of its partition, so a cluster keeps
what belongs to a name on one server. For each tag there is a sorted set (all scores 0) of
the keys that were swapped in, for `scan`:

    dolmen:{a7}:KEY    a value
    dolmen:{a7}:       the order

Read first: `dolmen.stores.driver`, `dolmen.stores.redis_servers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from dolmen.errors import DolmenError
from dolmen.store import Capabilities, Condition
from dolmen.stores.driver import HEAD, PATIENCE, Change, driver
from dolmen.stores.keyed import KeyedStore, open_keyed

driver("hiredis", "redis")  # redis-py works without, but slowly
driver("redis", "redis")
from dolmen.stores.redis_servers import Command, Servers  # noqa: E402

_PAGE = 256
_CAPABILITIES = [
    Capabilities(durable=durable, largest=5 << 30, digests=True, ordered=True, conflicts=True)
    for durable in (False, True)
]
_SWAP = """
-- KEYS: the order, then the keys. ARGV: 1 where it grows, an empty word, then two for each
-- key, what it has to begin with and what it is to be: empty for none.
for n = 2, #KEYS do
  local old = ARGV[2 * n - 1]
  -- No value is empty, so what is read of an absent one is less than is expected, or none.
  if redis.call('GETRANGE', KEYS[n], 0, math.max(#old, 1) - 1) ~= old then return 0 end
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
    redis.call('SET', KEYS[n], new)
    redis.call('ZADD', KEYS[1], 0, KEYS[n])
  end
end
return 1
"""


class RedisDriver:
    """Keeps values in the Redis of a URL. `patience` is in seconds, see `PATIENCE`."""

    part_size = 1 << 20

    def __init__(self, url: str, patience: float) -> None:
        self._servers = Servers(url, patience)
        prefix = self._servers.prefix.encode()
        self._spaces = [b"%b:{%02x}:" % (prefix, tag) for tag in range(256)]

    @property
    def capabilities(self) -> Capabilities:
        """See `Driver.capabilities`."""
        return _CAPABILITIES[self._servers.durable]

    async def get(self, keys: Sequence[bytes], *, head: bool = False) -> list[bytes | None]:
        """See `Driver.get`."""
        tag = int(keys[0][1:3], 16)
        space = self._spaces[tag]
        commands: list[Command] = [("GET", space + key) for key in keys]
        if head:
            commands = [("GETRANGE", space + key, 0, HEAD - 1) for key in keys]
        lane = "bulk" if keys[0][:1] == b"p" else "reads"
        return [value or None for value in await self._servers.ask(tag, commands, lane)]

    async def swap(self, changes: Sequence[Change], *, grows: bool = True) -> bool:
        """See `Driver.swap`."""
        tag = int(changes[0].key[1:3], 16)
        space = self._spaces[tag]
        words: list[Any] = ["EVAL", _SWAP, 1 + len(changes), space]
        words += [space + change.key for change in changes]
        words += [b"1" if grows else b"", b""]
        words += [value or b"" for change in changes for value in change[1:]]
        [done] = await self._servers.ask(tag, [tuple(words)], "writes")
        return bool(done)

    async def set(self, key: bytes, value: bytes | memoryview) -> None:
        """See `Driver.set`."""
        tag = int(key[1:3], 16)
        await self._servers.ask(tag, [("SET", self._spaces[tag] + key, value)], "bulk")

    async def delete(self, keys: Sequence[bytes]) -> None:
        """See `Driver.delete`."""
        tag = int(keys[0][1:3], 16)
        await self._servers.ask(tag, [("UNLINK", self._spaces[tag] + key) for key in keys], "bulk")

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See `Driver.scan`."""
        for tag in range(int(start[1:3], 16), int(stop[1:3], 16) + 1):
            space = self._spaces[tag]
            low, high = b"[" + space + start, b"(" + space + stop
            members = [b""] * _PAGE
            while len(members) == _PAGE:
                page = ("ZRANGEBYLEX", space, low, high, "LIMIT", 0, _PAGE)
                [members] = await self._servers.ask(tag, [page], "reads")
                if members:
                    keys = [member[len(space) :] for member in members]
                    values = await self.get(keys, head=True)
                    # What went meanwhile is left out.
                    found = zip(keys, values, strict=True)
                    yield [(key, value) for key, value in found if value is not None]
                    low = b"(" + members[-1]

    async def condition(self) -> Condition:
        """See `Driver.condition`; for a cluster, of its masters together."""
        servers = await self._servers.holders()
        asked = (server.look() for server in servers)
        found = await asyncio.gather(*asked, return_exceptions=True)
        condition, limits = Condition(), list[tuple[int, int]]()
        for server, answer in zip(servers, found, strict=True):
            if isinstance(answer, DolmenError) and len(servers) > 1:
                condition.reasons.append(str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                limits.append(_add(condition, server.at, answer))
                if server.lacking:
                    lacking = ", ".join(server.lacking)
                    condition.remarks.append(f"{server.at} is not durable: {lacking}")
        condition.writable = not condition.reasons
        if all(limit for _, limit in limits):
            condition.total = sum(limit for _, limit in limits)
            condition.free = sum(max(limit - used, 0) for used, limit in limits)
        return condition

    async def aclose(self) -> None:
        """See `Driver.aclose`."""
        await self._servers.aclose()


def _add(condition: Condition, at: str, info: Mapping[str, Any]) -> tuple[int, int]:
    """Add what a server says is wrong; returns its bytes of memory in use and their limit."""
    used, limit = info.get("used_memory", 0), info.get("maxmemory", 0)
    if limit and used >= limit:
        condition.reasons.append(f"{at} is full: {used} bytes of a maxmemory of {limit}")
    if info.get("role") == "slave":
        condition.reasons.append(f"{at} is a replica, which takes no writes")
    for key in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(key, "ok") != "ok":
            condition.remarks.append(f"{at} has trouble with its disk: {key} is {info[key]}")
    return used, limit


async def open_url(url: str, *, patience: float = PATIENCE, **options: Any) -> KeyedStore:
    """Open the store of a URL; see `open_keyed`. `patience`: seconds a server may take.

    Raises `BadSetting` for a URL that can't be read, where redis-py is not installed, and where
    the server refuses the password or the database.
    """
    return await open_keyed(RedisDriver(url, patience), **options)
