"""`redis://`, `rediss://` (TLS) and `redis+cluster://`: blobs in Redis, with hiredis.

    redis://[[user]:password@]host[:port][/database][?prefix=dolmen]
    redis+cluster://[[user]:password@]host[:port][,host[:port]…][?prefix=dolmen]

What it promises:

* **Durable** only where Redis flushes every write before it answers: `appendonly yes`,
  `appendfsync always`, `no-appendfsync-on-rewrite no` and `maxmemory-policy noeviction`.
  They are read with every connection, before the first write is answered, and with every
  `condition()`; a server with other settings, or one that refuses CONFIG as managed ones
  do, counts as not durable, and `condition().remarks` says why. A failover may lose writes
  all the same: replicas of Redis follow after the answer.
* **Atomic**: every write is one script on one server, which compares what stands with
  what was judged and changes entry, list order and digests together.
* **Largest blob** 5 GiB. Beyond 64 KiB the data lies in parts of 1 MiB, which expire
  after a day unless their blob is committed: what an abandoned upload leaves sweeps itself.
  A blob that is deleted or replaced while it is read ends that read with `Unavailable`.
* **Full** (`maxmemory` with noeviction): puts raise `Full`; reads, touches and deletes go on.
  A policy that evicts loses blobs, and digests may go on counting them.
* **Restart or failover**: what was on its way fails with `Unavailable`, or `OutcomeUnknown`
  where it may have been done; the next request connects again. Nothing is repeated.

Everything about a name lies under keys with one of 256 hash tags, by its partition, so a
cluster keeps it on one node (`layout`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dolmen.stores.driver import driver

if TYPE_CHECKING:
    from dolmen.stores.redis.store import RedisStore

__all__ = ["open_url"]


async def open_url(url: str) -> RedisStore:
    """Open the store a URL names.

    Raises `BadSetting` for a URL that can't be read, where redis-py is not installed, and
    where the server refuses the password or the database. A server that can't be reached
    is no error yet: every request says so until it can.
    """
    driver("hiredis", extra="redis")
    from dolmen.stores.redis.store import open_redis

    return await open_redis(url)
