"""A driver for SQLite: how little an engine takes.

One table in one file, one connection of this process. Durable as SQLite is with
`synchronous=FULL`: every swap is one transaction, flushed when it returns. It waits for the
disk on the loop, which is good enough to show the interface.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dolmen.errors import Full, Unavailable
from dolmen.store import Capabilities, Condition
from dolmen.stores.driver import HEAD, Change

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 256
TABLE = "CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
SET = "INSERT INTO kept VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
HEADS = f"substr(value, 1, {HEAD})"
SCAN = f"SELECT key, {HEADS} FROM kept WHERE key >= ? AND key < ? ORDER BY key LIMIT {PAGE}"


class SqliteDriver:
    """Keeps values in the table `kept` of a database file."""

    capabilities = Capabilities(
        durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
    )
    part_size = 1 << 20

    def __init__(self, path: Path) -> None:
        self._database: sqlite3.Connection | None = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(TABLE)

    @contextmanager
    def _transaction(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        if self._database is None:
            raise Unavailable("the store was closed")
        try:
            self._database.execute(begin)
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise (Full if "full" in str(error) else Unavailable)(f"SQLite: {error}") from error

    async def get(self, keys: Sequence[bytes], *, head: bool = False) -> list[bytes | None]:
        with self._transaction() as database:
            return _read(database, keys, head)

    async def swap(self, changes: Sequence[Change], *, grows: bool = True) -> bool:
        with self._transaction("BEGIN IMMEDIATE") as database:
            for key, old, _ in changes:
                [value] = _read(database, [key], False)
                if value is not None if old is None else not (value or b"").startswith(old):
                    return False
            for key, _, new in changes:
                if new is None:
                    database.execute("DELETE FROM kept WHERE key = ?", [key])
                else:
                    database.execute(SET, [key, new])
        return True

    async def set(self, key: bytes, value: bytes | memoryview) -> None:
        with self._transaction() as database:
            database.execute(SET, [key, value])

    async def delete(self, keys: Sequence[bytes]) -> None:
        with self._transaction() as database:
            database.executemany("DELETE FROM kept WHERE key = ?", [[key] for key in keys])

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        while True:
            with self._transaction() as database:
                page = database.execute(SCAN, [start, stop]).fetchall()
            if page:
                yield page
                start = page[-1][0] + b"\0"
            if len(page) < PAGE:
                return

    async def condition(self) -> Condition:
        return Condition()

    async def aclose(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _read(database: sqlite3.Connection, keys: Sequence[bytes], head: bool) -> list[bytes | None]:
    query = f"SELECT {HEADS if head else 'value'} FROM kept WHERE key = ?"
    rows = [database.execute(query, [key]).fetchone() for key in keys]
    return [row and row[0] for row in rows]
