"""The store in a PostgreSQL database; see the package."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from dolmen import metadata
from dolmen.digests import Digests, Slot
from dolmen.errors import (
    BadContent,
    BadSetting,
    Corrupt,
    DolmenError,
    NotFound,
    TooLarge,
    Unavailable,
)
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, Piece, Stream, read_whole
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, Capabilities, Condition, Put, Range
from dolmen.stores.old_bulk import OneByOne
from dolmen.stores.old_verdict import (
    NO_CHECKSUM,
    Action,
    Verdict,
    judge_delete,
    judge_put,
    judge_touch,
    may_remove,
)
from dolmen.stores.postgresql import parts
from dolmen.stores.postgresql.batches import Batches
from dolmen.stores.postgresql.changes import Change, carry_out
from dolmen.stores.postgresql.rows import COLUMNS, Entry, find, read
from dolmen.stores.postgresql.server import PATIENCE, Server, mendable, unflushed

LARGEST = 5 << 30
SMALL = 1 << 16
"""Data of up to this size lies in the blob's row."""
_PAGE = 1000
_SOME = 256
_SWEEP_EVERY = 600.0
_MOST = 128

_LIST = f"SELECT {COLUMNS} FROM dolmen_blobs WHERE (partition, name) > ($1, $2)"
_PAGED = f"ORDER BY partition, name LIMIT {_PAGE}"
_LIST_RUN = f"{_LIST} AND partition BETWEEN $3 AND $4 {_PAGED}"
_LIST_SOME = f"{_LIST} AND partition = ANY($3) {_PAGED}"
_DIGESTS = "SELECT partition, count, size, xor FROM dolmen_digests WHERE count > 0"
_NOTE = """
    INSERT INTO dolmen_notes VALUES ($1, $2)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value"""
_CONDITION = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"
_log = logging.getLogger("dolmen.postgresql")


class PostgresStore(OneByOne):
    """A blob store in a PostgreSQL database. `now` is in seconds since 1970, `clock` gives stamps.

    `capabilities.durable` is what the server is set to; it is asked with every new connection
    and every `condition`. Before the first it is taken for durable.
    """

    capabilities = Capabilities(
        durable=True, largest=LARGEST, digests=True, ordered=True, conflicts=True
    )
    reads_ahead = 64  # a query's worth; the small ones are whole, of the large ones nothing is

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        now: Callable[[], float] = time.time,
        patience: float = PATIENCE,
    ) -> None:
        self._server = Server(url, told=self._unflushed, patience=patience)
        self._clock = clock or Clock()
        self._now = now
        self._changes = Batches(self._change, at_once=2, most=_MOST)
        self._gets: Batches[str, Entry | None] = Batches(
            partial(self._find, data=True), at_once=2, most=_MOST
        )
        self._stats: Batches[str, Entry | None] = Batches(
            partial(self._find, data=False), at_once=1, most=_MOST
        )
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    def _unflushed(self, off: Sequence[str]) -> None:
        self.capabilities = replace(self.capabilities, durable=not off)

    async def _change(
        self, changes: Sequence[Change[Put | bool]]
    ) -> Sequence[Put | bool | DolmenError]:
        async with self._server.transaction() as connection:
            return await carry_out(connection, changes)

    async def _find(self, names: Sequence[str], *, data: bool) -> Sequence[Entry | None]:
        async with self._server.connection() as connection:
            found = await find(connection, dict.fromkeys(names), data=data)
        return [found.get(name) for name in names]

    async def put(
        self,
        name: str,
        payload: Payload,
        *,
        meta: bytes = b"",
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
    ) -> Put:
        """See `BlobStore.put`."""
        check_name(name)
        metadata.check(meta)
        if payload.size > LARGEST:
            raise TooLarge(f"{name} is {payload.size} bytes; this store keeps up to {LARGEST}")
        upload = data = None
        if payload.size <= SMALL:
            data = await read_whole(payload)
            found = checksum_of(data)
        else:
            upload, found = await parts.upload(self._server, payload)
        if checksum is not None and checksum != found:
            raise BadContent(f"the data of {name} does not have the checksum announced")
        info = BlobInfo(name, payload.size, kind, 0, found, meta)

        def judge(standing: BlobInfo | None, *, damaged: bool) -> Verdict:
            return judge_put(
                name,
                standing,
                damaged=damaged,
                kind=kind,
                checksum=found,
                metadata=meta,
                stamp=stamp,
                clock=self._clock,
            )

        return await self._write(Entry(info, upload, data=data), judge)

    async def _write(self, new: Entry, judge: Callable[..., Verdict]) -> Put:
        """Judge a write on what stands and put `new`, or its stamp and metadata, in place."""
        info = new.info

        def decide(standing: Entry | None) -> tuple[Entry | None, Put]:
            verdict = judge(
                standing.info if standing else None,
                damaged=standing is not None and standing.damaged,
            )
            if verdict.action is Action.KEEP:
                return standing, verdict.answer
            base = new if verdict.action is Action.WRITE else standing
            assert base is not None
            stands = base.revised(verdict.answer.stamp, info.metadata, int(self._now()))
            return stands, verdict.answer

        answer = await self._changes.ask(Change(info.name, decide, new.upload))
        assert isinstance(answer, Put)
        return answer

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        entry = self._live(name, await self._gets.ask(check_name(name)))
        info, data = entry.info, entry.data
        start, stop = byte_range or (0, info.size)
        stop = min(stop, info.size)
        if entry.upload is not None:
            payload = Stream(max(stop - start, 0), lambda: self._pieces(entry, start, stop))
            return Blob(info, payload)
        if data is None or len(data) != info.size or checksum_of(data) != info.checksum:
            raise await self._quarantine(entry)
        return Blob(info, Bytes(data if byte_range is None else data[start:stop]))

    async def _pieces(self, entry: Entry, start: int, stop: int) -> AsyncIterator[Piece]:
        assert entry.upload is not None
        async for piece in parts.read(self._server, entry.upload, start, stop):
            if piece is None:
                raise await self._quarantine(entry)
            yield piece

    async def _quarantine(self, entry: Entry) -> DolmenError:
        """Take a damaged copy out of lists and digests; what its reader is told.

        Unless another stands by now: the parts of this one may have gone while it was read.
        """
        of_this = (entry.upload, entry.info.checksum)

        def decide(standing: Entry | None) -> tuple[Entry | None, bool]:
            if standing is None or (standing.upload, standing.info.checksum) != of_this:
                return standing, False
            return replace(standing, damaged=True), True

        name = entry.info.name
        if await self._changes.ask(Change(name, decide)):
            return _damaged(name)
        return Unavailable(f"{name} was replaced or deleted while it was read; read it again")

    def _live(self, name: str, entry: Entry | None, *, tombstones: bool = False) -> Entry:
        if entry is None:
            raise NotFound(f"{name} is not here")
        if entry.damaged:
            raise _damaged(name)
        if entry.info.kind == Kind.TOMBSTONE and not tombstones:
            raise NotFound(f"{name} was deleted", stamp=entry.info.stamp)
        return entry

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        entry = await self._stats.ask(check_name(name))
        return self._live(name, entry, tombstones=tombstones).info

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        metadata.check(meta)
        info = BlobInfo(check_name(name), 0, Kind.BLOB, stamp, checksum, meta)

        def judge(standing: BlobInfo | None, *, damaged: bool) -> Verdict:
            return judge_touch(
                name, standing, damaged=damaged, checksum=checksum, metadata=meta, stamp=stamp
            )

        return await self._write(Entry(info), judge)

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        info = BlobInfo(check_name(name), 0, Kind.TOMBSTONE, 0, NO_CHECKSUM)

        def judge(standing: BlobInfo | None, *, damaged: bool) -> Verdict:  # noqa: ARG001
            return judge_delete(standing, stamp=stamp, clock=self._clock)

        return await self._write(Entry(info, data=b""), judge)

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""

        def decide(standing: Entry | None) -> tuple[Entry | None, bool]:
            info = standing.info if standing else None
            removed = may_remove(info, if_stamp=if_stamp, min_age=min_age, now=self._now())
            return (None if removed else standing), removed

        return bool(await self._changes.ask(Change(check_name(name), decide)))

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        place = (partition_of(after), after) if after is not None else (-1, "")
        for span in _spans(partitions):
            rows = None
            while rows is None or len(rows) == _PAGE:
                left = span[bisect_left(span, place[0]) :]
                if not left:
                    break
                async with self._server.connection() as connection:
                    if isinstance(left, range):
                        rows = await connection.fetch(_LIST_RUN, *place, left[0], left[-1])
                    else:
                        rows = await connection.fetch(_LIST_SOME, *place, left)
                for entry in map(read, rows):
                    info = entry.info
                    if (
                        not entry.damaged
                        and info.name.startswith(prefix)
                        and (tombstones or info.kind != Kind.TOMBSTONE)
                    ):
                        yield info
                if rows:
                    place = (partition_of(info.name), info.name)

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        async with self._server.connection() as connection:
            rows = await connection.fetch(_DIGESTS)
        return Digests(
            {
                partition: Slot(count, size, int.from_bytes(xor, "little"))
                for partition, count, size, xor in rows
            }
        )

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        async with self._server.transaction() as connection:
            await connection.execute(_NOTE, key, value)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        async with self._server.connection() as connection:
            rows = await connection.fetch("SELECT key, value FROM dolmen_notes")
        return dict(map(tuple, rows))

    async def condition(self) -> Condition:
        """See `BlobStore.condition`. What is free on its disks PostgreSQL doesn't tell."""
        async with self._server.connection() as connection:
            [(standby, read_only)] = await connection.fetch(_CONDITION)
            off = await unflushed(connection)
        self._unflushed(off)
        condition = Condition(writable=read_only == "off")
        where = self._server.where
        if standby:
            condition.reasons.append(f"{where} is a standby, which takes no writes")
        elif not condition.writable:
            condition.reasons.append(f"{where} is read-only (default_transaction_read_only)")
        if off:
            condition.remarks.append(f"{where} does not count as durable: {', '.join(off)} off")
        return condition

    async def _sweep(self) -> None:
        while True:
            try:
                await parts.sweep(self._server)
            except DolmenError as error:
                _log.info("parts that are due stay for now: %s", error)
            await asyncio.sleep(_SWEEP_EVERY)

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        while not self._sweeping.done():  # the driver may pass over a cancellation
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping], timeout=0.1)
        for batches in (self._changes, self._gets, self._stats):
            await batches.aclose()
        await self._server.aclose()


def _damaged(name: str) -> Corrupt:
    return Corrupt(f"the copy of {name} in PostgreSQL is damaged: replicate it from another store")


def _spans(partitions: Iterable[int]) -> Iterator[Sequence[int]]:
    """Ascending partitions in spans that one query can take: long runs, or lists of the others."""
    some: list[int] = []
    for run in _runs(partitions):
        if len(run) > _SOME:
            if some:
                yield some
                some = []
            yield run
        else:
            some += run
            if len(some) >= _SOME:
                yield some
                some = []
    if some:
        yield some


def _runs(partitions: Iterable[int]) -> Iterator[range]:
    """Ascending partitions in runs without a gap."""
    run = range(0)
    for partition in partitions:
        if run and partition == run.stop:
            run = range(run.start, partition + 1)
        else:
            if run:
                yield run
            run = range(partition, partition + 1)
    if run:
        yield run


async def open_url(
    url: str,
    *,
    clock: Clock | None = None,
    now: Callable[[], float] = time.time,
    patience: float = PATIENCE,
) -> PostgresStore:
    """Open the store of a `postgresql://` URL.

    A server that can't be reached now is opened all the same. Raises `BadSetting` for a URL
    that can't be right, for a user, password, database or schema that the server refuses.
    """
    store = PostgresStore(url, clock=clock, now=now, patience=patience)
    try:
        await store.condition()
    except Unavailable as error:
        if mendable(error):
            await store.aclose()
            raise BadSetting(str(error)) from error
        _log.warning("%s; opened all the same", error)
    except DolmenError:
        await store.aclose()
        raise
    return store
