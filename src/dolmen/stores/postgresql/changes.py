"""Changes of what stands, several in one transaction, and the digests with them.

The rows of the partitions' digests are locked first, in ascending order; they are the locks of
all names in them, those nothing stands under included. Then every change is decided on what
stands, and what is different afterwards is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from dolmen.digests import Slot
from dolmen.errors import DolmenError, Unavailable
from dolmen.names import partition_of
from dolmen.stores.postgresql.rows import COLUMNS, Entry, find, signed

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

A = TypeVar("A")
Row = tuple[object, ...]

LINGER = "interval '1 hour'"
"""So long parts stay after their upload went on, or after a blob was replaced that is read."""

_LOCK = """
    SELECT partition, count, size, xor FROM dolmen_digests
    WHERE partition = ANY($1) ORDER BY partition FOR UPDATE"""
_CLAIM = "DELETE FROM dolmen_uploads WHERE upload = ANY($1) AND due > now() RETURNING upload"
_LET_GO = f"""
    INSERT INTO dolmen_uploads (upload, due) OVERRIDING SYSTEM VALUE
    SELECT upload, now() + {LINGER} FROM unnest($1::bigint[]) upload"""
_WRITE = f"""
    INSERT INTO dolmen_blobs (partition, {COLUMNS}, data)
    SELECT * FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::smallint[], $5::bigint[],
        $6::bytea[], $7::bytea[], $8::bigint[], $9::bigint[], $10::boolean[], $11::bytea[])
    ON CONFLICT (partition, name) DO UPDATE SET
        (size, kind, stamp, checksum, metadata, arrived, upload, damaged, data) = (
            excluded.size, excluded.kind, excluded.stamp, excluded.checksum, excluded.metadata,
            excluded.arrived, excluded.upload, excluded.damaged, excluded.data)"""
_REVISE = """
    UPDATE dolmen_blobs AS blob
    SET stamp = new.stamp, metadata = new.metadata, arrived = new.arrived, damaged = new.damaged
    FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::bytea[], $5::bigint[], $6::boolean[])
        AS new (partition, name, stamp, metadata, arrived, damaged)
    WHERE (blob.partition, blob.name) = (new.partition, new.name)"""
_REMOVE = """
    DELETE FROM dolmen_blobs AS blob
    USING unnest($1::integer[], $2::text[]) AS old (partition, name)
    WHERE (blob.partition, blob.name) = (old.partition, old.name)"""
_COUNT = """
    UPDATE dolmen_digests AS digest SET count = new.count, size = new.size, xor = new.xor
    FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[])
        AS new (partition, count, size, xor)
    WHERE digest.partition = new.partition"""


@dataclass(slots=True)
class Change(Generic[A]):
    """A change of one name.

    `decide` gets what stands, and returns what is to stand and the answer; it may raise an
    error of the contract. `upload` is the upload that what is to stand may refer to.
    """

    name: str
    decide: Callable[[Entry | None], tuple[Entry | None, A]]
    upload: int | None = None


async def carry_out(
    connection: PoolConnectionProxy, changes: Sequence[Change[A]]
) -> list[A | DolmenError]:
    """Decide and write changes, in a transaction; an answer for each."""
    places = {change.name: partition_of(change.name) for change in changes}
    slots = {
        partition: Slot(count, size, int.from_bytes(xor, "little"))
        for partition, count, size, xor in await connection.fetch(
            _LOCK, sorted(set(places.values()))
        )
    }
    before = await find(connection, places)
    uploads = [change.upload for change in changes if change.upload is not None]
    claimed = {row[0] for row in await connection.fetch(_CLAIM, uploads)} if uploads else set()

    after: dict[str, Entry | None] = {name: before.get(name) for name in places}
    answers: list[A | DolmenError] = []
    for change in changes:
        try:
            if change.upload is not None and change.upload not in claimed:
                raise Unavailable(f"the upload of {change.name} stood still for over an hour")
            after[change.name], answer = change.decide(after[change.name])
            answers.append(answer)
        except DolmenError as error:
            answers.append(error)

    differing = [name for name in places if after[name] is not before.get(name)]
    written: list[Row] = []
    revised: list[Row] = []
    removed: list[Row] = []
    for name in differing:
        partition, old, new = places[name], before.get(name), after[name]
        if old and not old.damaged:
            slots[partition].drop(old.info.size, old.hash)
        if new and not new.damaged:
            slots[partition].add(new.info.size, new.hash)
        if new is None:
            removed.append((partition, name))
        elif old is None or new.data is not None or new.upload != old.upload:
            written.append(_row(partition, new))
        else:
            revised.append(_revision(partition, new))
    changed = sorted({places[name] for name in differing})
    counted: list[Row] = [(partition, *_counts(slots[partition])) for partition in changed]
    loose = (claimed | _uploads(before.values())) - _uploads(after.values())
    left: list[Row] = [(upload,) for upload in loose]
    for statement, rows in (
        (_WRITE, written),
        (_REVISE, revised),
        (_REMOVE, removed),
        (_COUNT, counted),
        (_LET_GO, left),
    ):
        if rows:
            await connection.execute(statement, *zip(*rows, strict=True))
    return answers


def _row(partition: int, entry: Entry) -> Row:
    """For `_WRITE`."""
    info = entry.info
    return (
        partition,
        info.name,
        info.size,
        info.kind,
        signed(info.stamp),
        info.checksum,
        info.metadata,
        info.arrived,
        entry.upload,
        entry.damaged,
        entry.data,
    )


def _revision(partition: int, entry: Entry) -> Row:
    """For `_REVISE`."""
    info = entry.info
    return (partition, info.name, signed(info.stamp), info.metadata, info.arrived, entry.damaged)


def _counts(slot: Slot) -> Row:
    """For `_COUNT`."""
    return slot.count, slot.size, slot.xor.to_bytes(16, "little")


def _uploads(entries: Iterable[Entry | None]) -> set[int]:
    return {entry.upload for entry in entries if entry and entry.upload is not None}
