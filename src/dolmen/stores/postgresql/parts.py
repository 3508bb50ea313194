"""Parts of large blobs: written before a row tells of them, read as they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from blake3 import blake3
from crc32c import crc32c

from dolmen.errors import Unavailable
from dolmen.names import CHECKSUM_SIZE
from dolmen.payload import Payload, Piece
from dolmen.stores.postgresql.changes import LINGER
from dolmen.stores.postgresql.server import Server

PART = 1 << 20
_SWEPT = 64

# A part needs no flush of its own: that of the row that tells of it flushes what was before.
_UNFLUSHED = "set_config('synchronous_commit', 'off', true)"
_FIRST = f"""
    WITH upload AS (
        INSERT INTO dolmen_uploads (due) VALUES (now() + {LINGER}) RETURNING upload)
    INSERT INTO dolmen_parts (upload, number, crc32c, data)
    SELECT upload, 0, $1, $2 FROM upload, {_UNFLUSHED} RETURNING upload"""
_NEXT = f"""
    WITH upload AS (
        UPDATE dolmen_uploads SET due = now() + {LINGER}
        WHERE upload = $3 AND due > now() RETURNING upload)
    INSERT INTO dolmen_parts (upload, number, crc32c, data)
    SELECT upload, $4, $1, $2 FROM upload, {_UNFLUSHED} RETURNING upload"""
_READ = "SELECT crc32c, data FROM dolmen_parts WHERE upload = $1 AND number = $2"
_DUE = "UPDATE dolmen_uploads SET due = '-infinity' WHERE due <= now()"
_SWEEP = """
    DELETE FROM dolmen_parts WHERE upload = $1
    AND number < $2 + (SELECT min(number) FROM dolmen_parts WHERE upload = $1)"""


async def upload(server: Server, payload: Payload) -> tuple[int, bytes]:
    """Write the parts of a payload: the number of the upload, and the payload's checksum."""
    hasher = blake3()
    number, into = 0, None
    async for part in _parts(payload):
        hasher.update(part)
        async with server.connection() as connection:
            if into is None:
                into = await connection.fetchval(_FIRST, crc32c(part), part)
            elif not await connection.fetchval(_NEXT, crc32c(part), part, into, number):
                raise Unavailable("the upload stood still for over an hour")
        number += 1
    assert into is not None
    return into, hasher.digest(CHECKSUM_SIZE)


async def _parts(payload: Payload) -> AsyncIterator[memoryview]:
    """A payload in parts. One is written over when the next is asked for."""
    if payload.whole is not None:
        whole = memoryview(payload.whole)
        for at in range(0, len(whole), PART):
            yield whole[at : at + PART]
        return
    part = memoryview(bytearray(min(PART, payload.size)))
    held = 0
    async for piece in payload:
        left = memoryview(piece)
        while left:
            taken = left[: PART - held]
            part[held : held + len(taken)] = taken
            held += len(taken)
            left = left[len(taken) :]
            if held == PART:
                yield part
                held = 0
    if held:
        yield part[:held]


async def read(server: Server, upload: int, start: int, stop: int) -> AsyncIterator[Piece | None]:
    """The bytes of an upload from `start` to before `stop`; None for a part that is not right."""
    for number in range(start // PART, -(-stop // PART)):
        async with server.connection() as connection:
            row = await connection.fetchrow(_READ, upload, number)
        if row is None or crc32c(row[1]) != row[0]:
            yield None
            return
        at = number * PART
        yield memoryview(row[1])[max(start - at, 0) : stop - at]


async def sweep(server: Server) -> None:
    """Drop the parts that are due, some at a time."""
    async with server.connection() as connection:
        await connection.execute(_DUE)  # from here on no row can come to tell of them
        rows = await connection.fetch("SELECT upload FROM dolmen_uploads WHERE due = '-infinity'")
    for (number,) in rows:
        swept = None
        while swept != "DELETE 0":
            async with server.connection() as connection:
                swept = await connection.execute(_SWEEP, number, _SWEPT)
        async with server.connection() as connection:
            await connection.execute("DELETE FROM dolmen_uploads WHERE upload = $1", number)
