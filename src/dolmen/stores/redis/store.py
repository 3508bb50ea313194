"""The store: what the contract asks, in commands to Redis."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import (
    BadContent,
    BadSetting,
    Corrupt,
    DolmenError,
    NotFound,
    TooLarge,
    Unavailable,
)
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Payload, Stream, read_whole
from dolmen.record import NOBODY, Kind
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
from dolmen.stores.redis.address import CLUSTER, Address, parse
from dolmen.stores.redis.cluster import ClusterLink
from dolmen.stores.redis.layout import INLINE, NOTHING, Entry, Keys, member, read
from dolmen.stores.redis.link import PATIENCE, Link
from dolmen.stores.redis.listing import pages, spans_of
from dolmen.stores.redis.reading import Parts, fronts
from dolmen.stores.redis.refusals import Refused
from dolmen.stores.redis.scripts import CHANGE
from dolmen.stores.redis.upload import Upload

_log = logging.getLogger("dolmen.redis")
_ATTEMPTS = 100
"""How often a write is judged again because another one came first, each time."""
_DONE, _PARTS_MISSING = 1, 0
_PARTITION = struct.Struct("<H")


class RedisStore(OneByOne):
    """A store in the Redis at an address. `now` returns seconds since 1970, `clock` gives stamps.

    `capabilities.durable` is what the servers are set to. They are asked with every
    connection, so it is known before the first write is answered.
    """

    reads_ahead: ClassVar[int] = 64  # what is larger than 64 KiB is read by who takes it

    def __init__(
        self, address: Address, *, clock: Clock, now: Callable[[], float], patience: float
    ) -> None:
        self.capabilities = Capabilities(
            durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
        )
        kind = ClusterLink if address.scheme == CLUSTER else Link
        self._link = kind(address, told=self._durable, patience=patience)
        self._keys = Keys(address.prefix)
        self._clock, self._now = clock, now

    def _durable(self, durable: bool) -> None:
        self.capabilities = replace(self.capabilities, durable=durable)

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
        tag, _ = self._keys.entry(name)
        metadata.check(meta)
        if payload.size > self.capabilities.largest:
            raise TooLarge(
                f"{name} is {payload.size} bytes; a blob in Redis is at most 5 GiB: "
                "upload it through an API server, which cuts it into chunks"
            )

        async def write(body: bytes | memoryview, found: bytes, upload: bytes = NOBODY) -> Put:
            if checksum is not None and checksum != found:
                raise BadContent(f"the data of {name} does not have the checksum announced")
            judge = partial(judge_put, name, kind=kind, checksum=found, metadata=meta)
            judge = partial(judge, stamp=stamp, clock=self._clock)
            entry = Entry(BlobInfo(name, payload.size, kind, 0, found, meta), upload)
            return await self._change(entry, body, judge, None)  # mostly nothing stands

        if payload.size <= INLINE:
            data = await read_whole(payload)
            return await write(data, checksum_of(data))
        with Upload(self._link, self._keys, tag) as upload:
            await upload.send(payload)
            return await write(bytes(upload.sums), upload.checksum, upload.id)

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        tag, key = self._keys.entry(name)
        value = await self._link.ask(tag, b"GET", key)
        entry = _sound(name, read(value or b""))
        if entry.parts:
            start, stop = byte_range or (0, entry.info.size)
            stop = min(stop, entry.info.size)
            if start >= stop:
                return Blob(entry.info, Bytes(b""))
            return Blob(entry.info, self._stream(entry, value, start, stop))
        try:
            data = entry.data(value)
        except Corrupt:
            await self._quarantine(entry)
            raise
        return Blob(entry.info, Bytes(data[slice(*byte_range)] if byte_range else data))

    def _stream(self, entry: Entry, value: bytes, start: int, stop: int) -> Stream:
        async def broken(number: int) -> Exception:
            standing = await self._standing(name)
            if standing is None or standing.upload != entry.upload:
                return Unavailable(f"{name} was deleted or replaced while it was read")
            if not standing.damaged:
                await self._quarantine(standing)
            return Corrupt(f"part {number} of {name} in Redis is missing or damaged")

        name = entry.info.name
        tag, _ = self._keys.entry(name)
        key = partial(self._keys.part, tag, entry.upload)
        parts = Parts(self._link, tag, key, memoryview(value)[len(entry.front) :])
        return Stream(stop - start, lambda: parts.read(start, stop, broken))

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        return _sound(name, await self._standing(name), tombstones=tombstones).info

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        metadata.check(meta)
        judge = partial(judge_touch, name, checksum=checksum, metadata=meta, stamp=stamp)
        entry = Entry(BlobInfo(name, 0, Kind.BLOB, 0, checksum, meta))
        return await self._change(entry, b"", judge, await self._standing(name))

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""

        def judge(standing: BlobInfo | None, *, damaged: bool) -> Verdict:  # noqa: ARG001
            return judge_delete(standing, stamp=stamp, clock=self._clock)

        entry = Entry(BlobInfo(name, 0, Kind.TOMBSTONE, 0, NO_CHECKSUM))
        return await self._change(entry, b"", judge, await self._standing(name))

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        standing = await self._standing(name)
        for _ in range(_ATTEMPTS):
            info = standing.info if standing is not None else None
            if not may_remove(info, if_stamp=if_stamp, min_age=min_age, now=self._now()):
                return False
            found = await self._apply(name, standing, None, b"")
            if found == _DONE:
                return True
            standing = read(found)
        raise _contended(name)

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        spans = spans_of(partitions, after)
        async for page in pages(self._link, self._keys, spans, prefix):
            for front in page:
                try:
                    info = _sound("", read(front), tombstones=tombstones).info
                except (Corrupt, NotFound):
                    continue
                yield info

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        asked = [self._link.ask(tag, b"HGETALL", key) for tag, key in enumerate(self._keys.digests)]
        encoded: list[bytes] = []
        for reply in await asyncio.gather(*asked):
            slots = sorted(zip(reply[::2], reply[1::2], strict=True))
            encoded += [_PARTITION.pack(int(partition, 16)) + slot for partition, slot in slots]
        return Digests.decode(b"".join(encoded))

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        await self._link.ask(0, b"HSET", self._keys.notes, key.encode(), value, writes=True)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        reply = await self._link.ask(0, b"HGETALL", self._keys.notes)
        return {key.decode(): value for key, value in zip(reply[::2], reply[1::2], strict=True)}

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        return await self._link.condition()

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        await self._link.aclose()

    # What stands, and what comes in its place

    async def _standing(self, name: str) -> Entry | None:
        [front] = await fronts(self._link, self._keys, [name])
        return read(front)

    async def _quarantine(self, entry: Entry) -> None:
        """Take a damaged copy out of lists and digests, unless something else stands by now."""
        with suppress(DolmenError):  # whoever reads it is told that it is damaged all the same
            await self._apply(entry.info.name, entry, replace(entry, damaged=True), None)

    async def _change(
        self,
        entry: Entry,
        body: bytes | memoryview,
        judge: Callable[..., Verdict],
        standing: Entry | None,
    ) -> Put:
        """Judge what stands, and carry the verdict out if it stands still; else again.

        `entry` and `body` are what a WRITE stores; a REVISE takes the entry's metadata.
        """
        name = entry.info.name
        for _ in range(_ATTEMPTS):
            info, damaged = (standing.info, standing.damaged) if standing else (None, False)
            verdict = judge(info, damaged=damaged)
            if verdict.action is Action.KEEP:
                return verdict.answer
            afresh = verdict.action is Action.WRITE
            base = entry if afresh or standing is None else standing
            stamp, meta, now = verdict.answer.stamp, entry.info.metadata, int(self._now())
            info = replace(base.info, stamp=stamp, metadata=meta, arrived=now)
            new = Entry(info, base.upload)
            found = await self._apply(name, standing, new, body if afresh else None)
            if found == _DONE:
                return verdict.answer
            if found == _PARTS_MISSING:
                raise Unavailable(
                    f"parts of {name} are gone: Redis evicted them, or the upload took over a day"
                )
            standing = read(found)
        raise _contended(name)

    def _apply(
        self, name: str, old: Entry | None, new: Entry | None, body: bytes | memoryview | None
    ) -> asyncio.Future[Any]:
        """Put `new` in place of `old` if that still stands; without a body it keeps the old one.

        The reply is `_DONE`, `_PARTS_MISSING` or the front that stands (empty for none).
        """
        keys = self._keys
        tag, key = keys.entry(name)
        was, now = old.counted if old else NOTHING, new.counted if new else NOTHING
        goes, comes = (old, new) if body is not None else (None, None)
        olds = keys.parts(tag, goes.upload, goes.parts) if goes else []
        news = keys.parts(tag, comes.upload, comes.parts) if comes else []
        return self._link.ask(
            tag,
            *(b"EVALSHA", CHANGE, 3 + len(olds) + len(news)),
            *(key, keys.order[tag], keys.digests[tag], *olds, *news),
            old.front if old else b"",
            new.seal().front if new else b"",
            int(body is None),
            member(name),
            now[0],
            now[0] - was[0],
            now[1] - was[1],
            (now[2] ^ was[2]).to_bytes(16, "little"),
            len(olds),
            body or b"",
            writes=True,
        )


def _sound(name: str, entry: Entry | None, *, tombstones: bool = False) -> Entry:
    if entry is None:
        raise NotFound(f"{name} is not here")
    if entry.info.kind == Kind.TOMBSTONE and not tombstones:
        raise NotFound(f"{name} was deleted", stamp=entry.info.stamp)
    if entry.damaged:
        raise Corrupt(f"the copy of {name} in Redis is damaged: replicate it from another store")
    return entry


def _contended(name: str) -> Unavailable:
    return Unavailable(f"{name} was changed by others {_ATTEMPTS} times meanwhile; try again")


async def open_redis(
    url: str,
    *,
    clock: Clock | None = None,
    now: Callable[[], float] = time.time,
    patience: float = PATIENCE,
) -> RedisStore:
    """Open the store of a URL; see `open_url`. `patience`: how many seconds a server may take."""
    address = parse(url)
    store = RedisStore(address, clock=clock or Clock(), now=now, patience=patience)
    try:
        await store.condition()
    except Refused as error:
        await store.aclose()
        raise BadSetting(str(error)) from error
    except Unavailable as error:
        _log.warning("%s; opened all the same, every request tries again", error)
    return store
