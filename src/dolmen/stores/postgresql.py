"""`postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE`: a driver for PostgreSQL, with asyncpg.

The URL is libpq's, with its parameters (`sslmode`, several hosts, `target_session_attrs`) and
settings of the session: `?search_path=SCHEMA` puts a store into a schema of its own. The one
table is made when the store is opened for the first time; its name begins with `dolmen_`.

What it promises:

* **Durable** as far as the server is: with `fsync`, `full_page_writes` or
  `synchronous_commit` off, which is read with every connection, the store does not count as
  a durable copy. A failover to an asynchronous standby may lose the last writes.
* **Atomic**: a swap is a call of one function, which locks the partition of its keys first.
  Swaps that come while the server is busy share the next call, gets the next query.
* **Full**: when the server's disk has no room, what needs some raises `Full`; reads go on.
* **Connection lost, no answer in time**: reads raise `Unavailable`, writes that were sent
  `OutcomeUnknown`; the next request connects again.

Read first: `dolmen.stores.driver`, `dolmen.stores.batches`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dolmen.errors import (
    BadSetting,
    Corrupt,
    DolmenError,
    Full,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.store import Capabilities, Condition
from dolmen.stores.batches import Batches
from dolmen.stores.driver import HEAD, PATIENCE, Change, Refused, driver
from dolmen.stores.keyed import KeyedStore, open_keyed
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    import asyncpg
else:
    asyncpg = driver("asyncpg", "postgresql")

_CONNECTIONS = 8
_PAGE = 1000
_SESSION = {
    "application_name": "dolmen",
    # What a swap reads after it got its locks is what is there then.
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": str(int(PATIENCE * 1000)),
    # Every statement goes along the primary key, also while the table's statistics are of the
    # time when it was empty.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}

_MIGRATIONS = (
    """
    CREATE TABLE dolmen_kept (key bytea PRIMARY KEY, value bytea NOT NULL) WITH (fillfactor = 80);
    ALTER TABLE dolmen_kept ALTER COLUMN value SET STORAGE EXTERNAL;

    -- Makes all changes of every group that finds what it expects; returns the others. The keys
    -- of a group belong to one partition, whose lock it takes.
    CREATE FUNCTION dolmen_swap(groups integer[], keys bytea[], olds bytea[], news bytea[])
    RETURNS integer[] LANGUAGE plpgsql AS $$
    DECLARE stale integer[];
    BEGIN
        PERFORM pg_advisory_xact_lock('dolmen_kept'::regclass::oid::integer, number)
            FROM (SELECT DISTINCT
                ('x' || encode(substring(k FROM 2 FOR 4), 'escape'))::bit(16)::integer AS number
                FROM unnest(keys) AS k ORDER BY number) AS partitions;
        SELECT coalesce(array_agg(DISTINCT g), '{}') INTO stale FROM (
            SELECT g, k, o, row_number() OVER (PARTITION BY k ORDER BY g) AS nth
            FROM unnest(groups, keys, olds) AS c (g, k, o)) AS c
            LEFT JOIN dolmen_kept ON key = k
            WHERE nth > 1 OR (value IS NULL) <> (o IS NULL)
                OR substring(value FROM 1 FOR length(o)) <> o;
        INSERT INTO dolmen_kept
            SELECT k, n FROM unnest(groups, keys, news) AS c (g, k, n)
            WHERE n IS NOT NULL AND g <> ALL (stale)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value;
        IF array_position(news, NULL) IS NOT NULL THEN
            DELETE FROM dolmen_kept USING unnest(groups, keys, news) AS c (g, k, n)
                WHERE key = k AND n IS NULL AND g <> ALL (stale);
        END IF;
        RETURN stale;
    END $$;
    """,
)
"""Steps from nothing to what this version works with. A released one never changes."""

_HEAD = f"substring(value FROM 1 FOR {HEAD})"
_GET = "SELECT key, value FROM dolmen_kept WHERE key = ANY ($1)"
_GET_HEADS = f"SELECT key, {_HEAD} FROM dolmen_kept WHERE key = ANY ($1)"
_SCAN = f"""
    SELECT key, {_HEAD} FROM dolmen_kept WHERE key >= $1 AND key < $2 ORDER BY key LIMIT {_PAGE}"""
_SWAP = "SELECT dolmen_swap($1, $2, $3, $4)"
_SET = """
    INSERT INTO dolmen_kept SELECT * FROM unnest($1::bytea[], $2::bytea[])
    ON CONFLICT (key) DO UPDATE SET value = excluded.value"""
_DELETE = "DELETE FROM dolmen_kept WHERE key = ANY ($1)"
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('dolmen_kept'))"
# By the catalog's rows: its functions may answer as of before the lock was given.
_APPLIED = """
    SELECT coalesce(max(description), '0')::integer FROM pg_class
        JOIN pg_description ON objoid = pg_class.oid AND classoid = 'pg_class'::regclass
        WHERE relname = 'dolmen_kept' AND pg_table_is_visible(pg_class.oid)"""
_STATE = """
    SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
        (SELECT string_agg(name, ', ') FROM pg_settings WHERE setting = 'off'
            AND name IN ('fsync', 'full_page_writes', 'synchronous_commit')) AS off"""
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server said that it ends, and has not ended yet
)
_MEANINGS: dict[str, type[DolmenError]] = {
    "53100": Full,  # disk_full
    "25006": ReadOnly,  # read_only_sql_transaction
    "XX001": Corrupt,  # data_corrupted
    "XX002": Corrupt,  # index_corrupted
}
_HINTS = {
    "28P01": "mend user and password in the store's URL (or PGPASSWORD, ~/.pgpass)",
    "28000": "mend user and password in the store's URL, or the server's pg_hba.conf",
    "3D000": "mend the database in the store's URL, or create it: createdb NAME",
    "3F000": "mend search_path in the store's URL, or create the schema: CREATE SCHEMA NAME",
    "42501": "let the user do that: GRANT CREATE, USAGE ON SCHEMA, or make it owner of the table",
    "42704": "the store's URL sets something that the server doesn't know",
    "22023": "the store's URL sets something to what the server doesn't know",
}


class PostgresDriver:
    """Keeps values in the table `dolmen_kept`. `patience` is in seconds, see `PATIENCE`."""

    part_size = 1 << 20

    def __init__(self, url: str, patience: float) -> None:
        self.capabilities = Capabilities(
            durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
        )
        self._where = f"PostgreSQL at {without_secrets(url)}"
        self._patience = patience
        self._migrated = False
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=_CONNECTIONS,
            connect=_connect,
            init=self._begin,
            reset=_as_it_is,
            timeout=patience,
            command_timeout=patience,
            server_settings=_SESSION,
        )
        self._swaps = Batches(self._swap, at_once=2, most=128)
        self._gets = Batches(partial(self._get, _GET), at_once=2, most=128)
        self._heads = Batches(partial(self._get, _GET_HEADS), at_once=1, most=128)
        self._parts = Batches(partial(self._get, _GET), at_once=2, most=4)
        self._sets = Batches(self._set, at_once=2, most=4)

    async def get(self, keys: Sequence[bytes], *, head: bool = False) -> list[bytes | None]:
        """See `Driver.get`."""
        batches = self._heads if head else self._parts if keys[0][:1] == b"p" else self._gets
        return await batches.ask(keys)

    async def _get(
        self, query: str, questions: Sequence[Sequence[bytes]]
    ) -> list[list[bytes | None]]:
        rows = await self._fetch(query, {key for keys in questions for key in keys})
        found: dict[bytes, bytes] = dict(map(tuple, rows))
        return [[found.get(key) for key in keys] for keys in questions]

    async def swap(self, changes: Sequence[Change], **_grows: bool) -> bool:
        """See `Driver.swap`. What frees room needs some as well here, for a while."""
        return await self._swaps.ask(changes)

    async def _swap(self, questions: Sequence[Sequence[Change]]) -> list[bool]:
        every = [(at, *change) for at, changes in enumerate(questions) for change in changes]
        [[stale]] = await self._fetch(_SWAP, *map(list, zip(*every, strict=True)), writes=True)
        return [at not in stale for at in range(len(questions))]

    async def set(self, key: bytes, value: bytes | memoryview) -> None:
        """See `Driver.set`."""
        await self._sets.ask((key, value))

    async def _set(self, pairs: Sequence[tuple[bytes, bytes | memoryview]]) -> list[None]:
        await self._fetch(_SET, *map(list, zip(*pairs, strict=True)), writes=True)
        return [None] * len(pairs)

    async def delete(self, keys: Sequence[bytes]) -> None:
        """See `Driver.delete`."""
        await self._fetch(_DELETE, keys, writes=True)

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See `Driver.scan`."""
        while True:
            page = [(key, value) for key, value in await self._fetch(_SCAN, start, stop)]
            if page:
                yield page
                start = page[-1][0] + b"\0"
            if len(page) < _PAGE:
                return

    async def condition(self) -> Condition:
        """See `Driver.condition`. What is free on its disks PostgreSQL doesn't tell."""
        [(standby, read_only, off)] = await self._fetch(_STATE)
        self.capabilities = replace(self.capabilities, durable=not off)
        condition = Condition(writable=not read_only)
        if standby:
            condition.reasons.append(f"{self._where} is a standby, which takes no writes")
        elif read_only:
            condition.reasons.append(f"{self._where} is read-only (default_transaction_read_only)")
        if off:
            condition.remarks.append(f"{self._where} does not count as durable: {off} off")
        return condition

    async def aclose(self) -> None:
        """See `Driver.aclose`."""
        for batches in (self._swaps, self._gets, self._heads, self._parts, self._sets):
            await batches.aclose()
        try:
            async with asyncio.timeout(self._patience):
                await self._pool.close()
        except _LOST:
            self._pool.terminate()

    # The server

    async def _fetch(self, statement: str, *values: Any, writes: bool = False) -> list[Any]:
        """The rows a statement gives; errors are those of the contract."""
        if asyncio.current_task() is None:
            await asyncio.sleep(0)  # the library's timeouts need a task
        sent = False
        try:
            await self._pool  # does nothing from the second time on
            async with self._pool.acquire(timeout=self._patience) as connection:
                sent = writes
                try:
                    rows: list[Any] = await connection.fetch(statement, *values)
                except TimeoutError:
                    with suppress(asyncpg.InterfaceError):  # it has ended by itself
                        connection.terminate()  # whatever comes on it comes too late
                    raise
                return rows
        except (asyncpg.PostgresError, *_LOST) as error:
            state = getattr(error, "sqlstate", None) or ""
            # Class 57: the server said that it ends the connection.
            lost = isinstance(error, _LOST) and not isinstance(error, TimeoutError)
            lost = lost or state.startswith("57")
            if lost:  # and the others with it, which may not show yet
                await self._pool.expire_connections()
            text = f"{self._where}: {str(error).partition(chr(10))[0] or 'no answer in time'}"
            if sent and (lost or isinstance(error, TimeoutError)):
                raise OutcomeUnknown(f"{text}; the write may have happened") from error
            if state in _HINTS:
                raise Refused(f"{text}; {_HINTS[state]}") from error
            raise _MEANINGS.get(state, Unavailable)(text) from error

    async def _begin(self, connection: asyncpg.Connection) -> None:
        if not self._migrated:
            await _migrate(connection)
            self._migrated = True
        [state] = await connection.fetch(_STATE)
        self.capabilities = replace(self.capabilities, durable=not state["off"])


async def _migrate(connection: asyncpg.Connection) -> None:
    """Bring the table, whose comment is its version, up to date; one process at a time.

    Raises `BadSetting` where a newer dolmen has been at work.
    """
    if await connection.fetchval(_APPLIED) == len(_MIGRATIONS):
        return
    async with connection.transaction():
        await connection.execute(_LOCK)
        applied = await connection.fetchval(_APPLIED)
        if applied > len(_MIGRATIONS):
            raise BadSetting(
                f"the table of this PostgreSQL store is of version {applied}, and this dolmen"
                f" knows it up to {len(_MIGRATIONS)}: use a newer dolmen"
            )
        for statements in _MIGRATIONS[applied:]:
            await connection.execute(statements)
        await connection.execute(f"COMMENT ON TABLE dolmen_kept IS '{len(_MIGRATIONS)}'")


async def _connect(*args: Any, **settings: Any) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(*args, **settings)
    except (ValueError, OverflowError) as error:
        raise BadSetting(
            f"the URL of a PostgreSQL store can't be used: {error}; write"
            " postgresql://[user[:password]@]host[:port]/database[?search_path=schema]"
        ) from error


async def _as_it_is(_connection: asyncpg.Connection) -> None:
    """Nothing is left in a session that the next request would mind."""


async def open_url(url: str, *, patience: float = PATIENCE, **options: Any) -> KeyedStore:
    """Open the store of a `postgresql://` URL; see `open_keyed`.

    Raises `BadSetting` for a URL that can't be right, for a user, password, database or
    schema that the server refuses.
    """
    return await open_keyed(PostgresDriver(url, patience), **options)
