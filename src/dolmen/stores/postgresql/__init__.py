"""`postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE` blobs in tables of a PostgreSQL database.

The URL is libpq's, with its parameters (`sslmode`, several hosts, `target_session_attrs`) and
settings of the session: `?search_path=SCHEMA` puts a store into a schema of its own. Tables are
made when the store is opened for the first time (`migrations`); their names begin with `dolmen_`.

Every change of a name happens under the lock of its partition's digest (`changes`), in one
transaction with it: two writers never both believe they were first, and digests are exact.
Changes that come while the server is busy share the next transaction, gets the next query.

A blob of up to 64 KiB lies in its row. Of a larger one the parts come first, under the number of
an upload that no row tells of yet, and the row last. Nothing is locked while a client is waited
for. Parts that no row tells of (abandoned, replaced, deleted) go an hour later.

Durable as far as the server is: with `fsync`, `full_page_writes` or `synchronous_commit` off,
which is read at the start, the store doesn't count as a durable copy. A failover to an
asynchronous standby may lose the last writes.
"""

from __future__ import annotations

from dolmen.stores.postgresql.store import PostgresStore, open_url

__all__ = ["PostgresStore", "open_url"]
