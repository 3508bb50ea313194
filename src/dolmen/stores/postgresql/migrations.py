"""The tables, as numbered steps from nothing to what this version works with.

A step that was released never changes; a change is a new step at the end. Stamps are kept in
`bigint`, those from 2^63 on as negative numbers: nothing orders by them here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dolmen.errors import BadSetting

if TYPE_CHECKING:
    from asyncpg import Connection

MIGRATIONS = (
    """
    CREATE TABLE dolmen_blobs (
        partition integer NOT NULL,
        kind smallint NOT NULL,
        damaged boolean NOT NULL,
        stamp bigint NOT NULL,
        size bigint NOT NULL,
        arrived bigint NOT NULL,
        upload bigint,
        name text COLLATE "C" NOT NULL,
        checksum bytea NOT NULL,
        metadata bytea NOT NULL,
        data bytea,
        PRIMARY KEY (partition, name)
    );
    COMMENT ON TABLE dolmen_blobs IS 'what stands under a name; large data is in dolmen_parts';
    ALTER TABLE dolmen_blobs ALTER COLUMN data SET STORAGE EXTERNAL;

    CREATE TABLE dolmen_parts (
        upload bigint NOT NULL,
        number integer NOT NULL,
        crc32c bigint NOT NULL,
        data bytea NOT NULL,
        PRIMARY KEY (upload, number)
    );
    ALTER TABLE dolmen_parts ALTER COLUMN data SET STORAGE EXTERNAL;

    CREATE TABLE dolmen_uploads (
        upload bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        due timestamptz NOT NULL
    ) WITH (fillfactor = 50);
    COMMENT ON TABLE dolmen_uploads IS 'parts that no blob tells of, and when they may go';

    CREATE TABLE dolmen_digests (
        partition integer PRIMARY KEY,
        count bigint NOT NULL,
        size bigint NOT NULL,
        xor bytea NOT NULL
    ) WITH (fillfactor = 50);
    COMMENT ON TABLE dolmen_digests IS 'whoever changes a partition locks its row';
    INSERT INTO dolmen_digests
        SELECT number, 0, 0, decode(repeat('00', 16), 'hex') FROM generate_series(0, 65535) number;

    CREATE TABLE dolmen_notes (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL);
    """,
)
_APPLIED = "SELECT coalesce(max(number), 0) FROM dolmen_migrations"


async def migrate(connection: Connection) -> None:
    """Bring the tables up to date; one process at a time.

    Raises `BadSetting` where a newer dolmen has been at work.
    """
    if await connection.fetchval("SELECT to_regclass('dolmen_migrations')"):
        applied = await connection.fetchval(_APPLIED)
        if applied == len(MIGRATIONS):
            return
        if applied > len(MIGRATIONS):
            raise BadSetting(
                f"the tables of this PostgreSQL store are of version {applied}, and this dolmen"
                f" knows them up to {len(MIGRATIONS)}: use a newer dolmen"
            )
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('dolmen_migrations'))")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS dolmen_migrations"
            " (number integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
        )
        applied = await connection.fetchval(_APPLIED)
        for number, statements in enumerate(MIGRATIONS[applied:], applied + 1):
            await connection.execute(statements)
            await connection.execute("INSERT INTO dolmen_migrations VALUES ($1)", number)
