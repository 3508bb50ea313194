"""`memcached://HOST:PORT[,HOST:PORT…][/PREFIX]` blobs in the memory of memcached servers.

For caches, and as the neighbour that forgets: memcached drops whatever it likes when its memory
is full, and everything when it ends. So the store is not durable and never counts as a copy.
What was dropped is not there (`NotFound`); half a blob is never given.

Every change is a compare-and-swap of the item that holds a blob's head, so two writers never
both believe they were first. Several servers share the names out by partition; there is
one copy of each. Needs memcached 1.6 (meta commands), with its LRU crawler on, as it is unless
told otherwise: lists are made by it, and sorted here, in memory.
"""

from __future__ import annotations

from dolmen.stores.memcached.store import MemcachedStore, open_url

__all__ = ["MemcachedStore", "open_url"]
