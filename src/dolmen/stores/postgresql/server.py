"""The PostgreSQL server: connections, transactions, and what its errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
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
from dolmen.stores.driver import driver
from dolmen.stores.postgresql.migrations import migrate
from dolmen.stores.secrets import without_secrets

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy
else:
    asyncpg = driver("asyncpg", "postgresql")

PATIENCE = 10.0
"""Seconds for one statement, for connecting, and for a free connection."""
CONNECTIONS = 8
"""At most so many from one process."""

_SESSION = {
    "application_name": "dolmen",
    # What a change reads after it got its locks is what stands then.
    "default_transaction_isolation": "read committed",
    # A client that stopped in a transaction does not keep its locks.
    "idle_in_transaction_session_timeout": str(int(PATIENCE * 1000)),
    # Every statement goes along a primary key, also while the tables' statistics are of the
    # time when they were empty.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server said that it ends, and has not ended yet
)
_FLUSHING = """
    SELECT current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit"""
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
    "42501": "let the user do that: GRANT CREATE, USAGE ON SCHEMA, or make it owner of the tables",
    "42704": "the store's URL sets something that the server doesn't know",
    "22023": "the store's URL sets something to what the server doesn't know",
    "53300": "raise its max_connections",
}
_MENDABLE = frozenset(_HINTS) - {"53300"}


class Server:
    """Connections to the server of a URL, made when they are needed and again when lost.

    A lost connection fails what was under way on it, never the next request. `told` hears
    with every new one, before anything is asked over it, what the server does not flush.
    `patience` is in seconds, see `PATIENCE`.
    """

    def __init__(
        self, url: str, *, told: Callable[[Sequence[str]], None], patience: float = PATIENCE
    ) -> None:
        self._told_off = told
        self.where = f"PostgreSQL at {without_secrets(url)}"
        self._patience = patience
        self._migrated = False
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=CONNECTIONS,
            connect=_connect,
            init=self._begin,
            reset=_as_it_is,
            timeout=patience,
            command_timeout=patience,
            server_settings=_SESSION,
        )

    async def _begin(self, connection: asyncpg.Connection) -> None:
        if not self._migrated:
            await migrate(connection)
            self._migrated = True
        self._told_off(await unflushed(connection))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PoolConnectionProxy]:
        """A connection. What the driver raises inside is told as an error of the contract.

        That is `Unavailable` for a lost connection, so what is inside changes nothing for
        which it matters whether it happened; that goes into a `transaction`.
        """
        if asyncio.current_task() is None:
            await asyncio.sleep(0)  # the driver's timeouts need a task
        try:
            await self._pool  # does nothing from the second time on
            async with self._pool.acquire(timeout=self._patience) as connection:
                try:
                    yield connection
                except TimeoutError:
                    _end(connection)
                    raise
        except (asyncpg.PostgresError, *_LOST) as error:
            if _is_lost(error):  # and the others with it, which may not show yet
                await self._pool.expire_connections()
            raise self._told(error) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PoolConnectionProxy]:
        """A connection in a transaction, which is committed at the end.

        Raises `OutcomeUnknown` when the connection is lost while it commits; every other
        error tells that nothing happened.
        """
        async with self.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except _LOST:
                raise
            except BaseException:
                await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except (asyncpg.PostgresError, *_LOST) as error:
                if not isinstance(error, TimeoutError) and not _is_lost(error):
                    raise
                _end(connection)
                raise OutcomeUnknown(
                    f"{self.where}: the connection was lost while it committed ({_said(error)});"
                    " the write may have happened"
                ) from error

    def _told(self, error: Exception) -> DolmenError:
        state = getattr(error, "sqlstate", None) or ""
        hint = _HINTS.get(state)
        text = f"{self.where}: {_said(error)}" + (f"; {hint}" if hint else "")
        return _MEANINGS.get(state, Unavailable)(text)

    async def aclose(self) -> None:
        """Let go of every connection."""
        try:
            async with asyncio.timeout(self._patience):
                await self._pool.close()
        except _LOST:
            self._pool.terminate()


async def unflushed(connection: asyncpg.Connection | PoolConnectionProxy) -> list[str]:
    """The settings that keep what was committed from surviving a power cut."""
    [values] = await connection.fetch(_FLUSHING)
    return [name for name, value in values.items() if value == "off"]


def mendable(error: DolmenError) -> bool:
    """Whether somebody has to mend the URL, or what it names on the server."""
    return getattr(error.__cause__, "sqlstate", None) in _MENDABLE


def _end(connection: PoolConnectionProxy) -> None:
    """Let go of a connection at once: whatever comes on it comes too late."""
    with suppress(asyncpg.InterfaceError):  # it has ended by itself
        connection.terminate()


def _is_lost(error: Exception) -> bool:
    """Whether the connection broke, or the server said that it ends it (class 57)."""
    if isinstance(error, TimeoutError):
        return False
    return isinstance(error, _LOST) or str(getattr(error, "sqlstate", ""))[:2] == "57"


def _said(error: BaseException) -> str:
    return str(error).partition("\n")[0] or "no answer in time"


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
