"""The store: what the contract asks, in commands to Redis."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import (
    BadContent,
    BadSetting,
    Corrupt,
    DolmenError,
    InvalidName,
    NotFound,
    TooLarge,
    Unavailable,
)
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Payload, Stream, read_whole
from dolmen.record import HEAD_MAX, NOBODY, Kind
from dolmen.stamps import Clock
from dolmen.store import (
    ALL_PARTITIONS,
    Blob,
    BlobInfo,
    Capabilities,
    Condition,
    Failed,
    Put,
    Range,
)
from dolmen.stores.bulk import WINDOW, OneByOne
from dolmen.stores.redis.address import parse
from dolmen.stores.redis.layout import INLINE, Entry, Keys, member, read
from dolmen.stores.redis.link import TIMEOUT, Link
from dolmen.stores.redis.listing import Listing
from dolmen.stores.redis.parts import Parts, Upload
from dolmen.stores.redis.scripts import CHANGE
from dolmen.stores.redis.server import Refused
from dolmen.stores.redis.settings import ASKED, condition_of, not_durable, together
from dolmen.stores.verdict import (
    NO_CHECKSUM,
    Action,
    Verdict,
    judge_delete,
    judge_put,
    judge_touch,
    may_remove,
)

_log = logging.getLogger("dolmen.redis")
_ATTEMPTS = 100
"""How often a write is judged again because another one came first, each time."""
_DONE, _PARTS_MISSING = 1, 0
_FRONT_MAX = HEAD_MAX + 8
_PARTITION = struct.Struct("<H")
_TAGS = range(256)


class RedisStore(OneByOne):
    """A store behind a link. `now` returns seconds since 1970, `clock` gives stamps."""

    def __init__(self, link: Link, prefix: str, *, clock: Clock, now: Callable[[], float]) -> None:
        self.capabilities = Capabilities(
            durable=True, largest=5 << 30, digests=True, ordered=True, conflicts=True
        )
        self._link, self._keys = link, Keys(prefix)
        self._clock, self._now = clock, now

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

        async def write(body: bytes | memoryview, found: bytes, upload: bytes = NOBODY) -> Verdict:
            if checksum is not None and checksum != found:
                raise BadContent(f"the data of {name} does not have the checksum announced")
            judge = partial(
                judge_put,
                name,
                kind=kind,
                checksum=found,
                metadata=meta,
                stamp=stamp,
                clock=self._clock,
            )
            entry = Entry(BlobInfo(name, payload.size, kind, 0, found, meta), upload)
            return await self._change(entry, body, judge, guess=True)

        if payload.size <= INLINE:
            data = await read_whole(payload)
            return (await write(data, checksum_of(data))).answer
        with Upload(self._link, self._keys, tag) as upload:
            await upload.send(payload)
            verdict = await write(upload.sums, upload.checksum, upload.id)
            upload.kept = verdict.action is Action.WRITE
        return verdict.answer

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        tag, key = self._keys.entry(name)
        value = await self._link.ask(tag, b"GET", key)
        return await self._open(name, value, byte_range)

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        entry = _present(name, await self._standing(name), tombstones=tombstones)
        if entry.damaged:
            raise _damaged(name)
        return entry.info

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        metadata.check(meta)
        judge = partial(judge_touch, name, checksum=checksum, metadata=meta, stamp=stamp)
        entry = Entry(BlobInfo(name, 0, Kind.BLOB, 0, checksum, meta))
        return (await self._change(entry, b"", judge)).answer

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""

        def judge(standing: BlobInfo | None, *, damaged: bool) -> Verdict:  # noqa: ARG001
            return judge_delete(standing, stamp=stamp, clock=self._clock)

        entry = Entry(BlobInfo(name, 0, Kind.TOMBSTONE, 0, NO_CHECKSUM))
        return (await self._change(entry, b"", judge)).answer

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
            standing = _read(found)
        raise _contended(name)

    def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        listing = Listing(self._link, self._keys, partitions, after, prefix, tombstones=tombstones)
        return aiter(listing)

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        asked = [self._link.ask(tag, b"HGETALL", self._keys.digests(tag)) for tag in _TAGS]
        encoded: list[bytes] = []
        for reply in await asyncio.gather(*asked):
            slots = sorted(zip(reply[::2], reply[1::2], strict=True))
            encoded += [_PARTITION.pack(int(partition, 16)) + slot for partition, slot in slots]
        return Digests.decode(b"".join(encoded))

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`. Up to `WINDOW` entries are asked ahead."""
        ahead: deque[tuple[str, asyncio.Future[bytes | None] | InvalidName]] = deque()
        try:
            for name in names:
                try:
                    tag, key = self._keys.entry(name)
                    ahead.append((name, self._link.ask(tag, b"GET", key)))
                except InvalidName as error:
                    ahead.append((name, error))
                if len(ahead) >= WINDOW:
                    yield await self._answer(*ahead.popleft())
            while ahead:
                yield await self._answer(*ahead.popleft())
        finally:
            for _, asked in ahead:
                if isinstance(asked, asyncio.Future):
                    asked.cancel()

    async def _answer(
        self, name: str, asked: asyncio.Future[bytes | None] | InvalidName
    ) -> Blob | Failed:
        if isinstance(asked, InvalidName):
            return Failed(name, asked)
        try:
            return await self._open(name, await asked, None, tombstones=True)
        except DolmenError as error:
            return Failed(name, error)

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        await self._link.write(0, b"HSET", self._keys.notes, key.encode(), value)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        reply = await self._link.ask(0, b"HGETALL", self._keys.notes)
        return {key.decode(): value for key, value in zip(reply[::2], reply[1::2], strict=True)}

    async def condition(self) -> Condition:
        """See `BlobStore.condition`. What is found decides whether the store is durable."""
        told = await self._link.everywhere(*ASKED)
        condition = together([condition_of(where, replies) for where, replies in told])
        durable = not any(not_durable(replies) for _, replies in told)
        self.capabilities = replace(self.capabilities, durable=durable)
        return condition

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        await self._link.aclose()

    # Reading

    async def _standing(self, name: str) -> Entry | None:
        tag, key = self._keys.entry(name)
        return _read(await self._link.ask(tag, b"GETRANGE", key, 0, _FRONT_MAX))

    async def _open(
        self,
        name: str,
        value: bytes | None,
        byte_range: Range | None,
        *,
        tombstones: bool = False,
    ) -> Blob:
        """The blob that an entry with this value is."""
        entry = _present(name, _read(value or b""), tombstones=tombstones)
        assert value is not None
        if entry.damaged:
            raise _damaged(name)
        info = entry.info
        if entry.parts:
            start, stop = byte_range or (0, info.size)
            return Blob(info, self._stream(entry, value, start, min(stop, info.size)))
        try:
            data = entry.data(value)
        except Corrupt:
            await self._quarantine(entry)
            raise
        return Blob(info, Bytes(data[slice(*byte_range)] if byte_range else data))

    def _stream(self, entry: Entry, value: bytes, start: int, stop: int) -> Stream:
        async def broken(number: int) -> DolmenError:
            standing = await self._standing(name)
            if standing is None or standing.upload != entry.upload:
                return Unavailable(f"{name} was deleted or replaced while it was read")
            await self._quarantine(standing)
            return Corrupt(f"part {number} of {name} in Redis is missing or damaged")

        name = entry.info.name
        tag, _ = self._keys.entry(name)
        parts = Parts(self._link, tag, self._keys.parts(tag, entry.upload), entry.body(value))
        return Stream(max(stop - start, 0), lambda: parts.read(start, stop, broken))

    async def _quarantine(self, entry: Entry) -> None:
        """Take a damaged copy out of lists and digests, unless something else stands by now."""
        if not entry.damaged:
            await self._apply(entry.info.name, entry, replace(entry, damaged=True), None)

    # Writing

    async def _change(
        self,
        entry: Entry,
        body: bytes | memoryview,
        judge: Callable[..., Verdict],
        *,
        guess: bool = False,
    ) -> Verdict:
        """Judge what stands, and carry the verdict out if it stands still; else again.

        `entry` and `body` are what a WRITE stores; a REVISE takes the entry's metadata. With
        `guess` nothing is expected to stand, which saves asking where it is so.
        """
        name = entry.info.name
        standing = None if guess else await self._standing(name)
        for _ in range(_ATTEMPTS):
            verdict = judge(
                standing.info if standing is not None else None,
                damaged=standing is not None and standing.damaged,
            )
            if verdict.action is Action.KEEP:
                return verdict
            afresh = verdict.action is Action.WRITE
            base = entry if afresh else standing
            assert base is not None
            info = replace(
                base.info,
                stamp=verdict.answer.stamp,
                metadata=entry.info.metadata,
                arrived=int(self._now()),
            )
            new = Entry(info, base.upload)
            found = await self._apply(name, standing, new, body if afresh else None)
            if found == _DONE:
                return verdict
            if found == _PARTS_MISSING:
                raise Unavailable(
                    f"parts of {name} are gone: Redis evicted them, or the upload took over a day"
                )
            standing = _read(found)
        raise _contended(name)

    def _apply(
        self, name: str, old: Entry | None, new: Entry | None, body: bytes | memoryview | None
    ) -> asyncio.Future[Any]:
        """Put `new` in place of `old` if that still stands; without a body it keeps the old one.

        The reply is `_DONE`, `_PARTS_MISSING` or the front that stands (empty for none).
        """
        tag, key = self._keys.entry(name)
        keys = self._keys
        was, now = old.counted if old else _NOTHING, new.counted if new else _NOTHING
        gone = old if old and not (new and new.upload == old.upload) else None
        came = new if new and body is not None else None
        return self._link.write(
            tag,
            b"EVALSHA",
            CHANGE,
            3,
            key,
            keys.order(tag),
            keys.digests(tag),
            old.front if old else b"",
            new.seal().front if new else b"",
            int(body is None),
            member(name),
            now[0],
            now[0] - was[0],
            now[1] - was[1],
            (now[2] ^ was[2]).to_bytes(16, "little"),
            keys.parts(tag, gone.upload) if gone else b"",
            gone.parts if gone else 0,
            keys.parts(tag, came.upload) if came else b"",
            came.parts if came else 0,
            memoryview(body or b""),
        )


_NOTHING = (0, 0, 0)


def _read(value: bytes) -> Entry | None:
    return read(value) if value else None


def _present(name: str, entry: Entry | None, *, tombstones: bool) -> Entry:
    if entry is None:
        raise NotFound(f"{name} is not here")
    if entry.info.kind == Kind.TOMBSTONE and not tombstones:
        raise NotFound(f"{name} was deleted", stamp=entry.info.stamp)
    return entry


def _damaged(name: str) -> Corrupt:
    return Corrupt(f"the copy of {name} in Redis is damaged: replicate it from another store")


def _contended(name: str) -> Unavailable:
    return Unavailable(f"{name} was changed by others {_ATTEMPTS} times meanwhile; try again")


async def open_redis(
    url: str,
    *,
    clock: Clock | None = None,
    now: Callable[[], float] = time.time,
    timeout: float = TIMEOUT,
) -> RedisStore:
    """Open the store of a URL; see `open_url`. `timeout`: seconds for one exchange."""
    address = parse(url)
    link = Link(address, timeout=timeout)
    store = RedisStore(link, address.prefix, clock=clock or Clock(), now=now)
    try:
        await store.condition()
    except Refused as error:
        await store.aclose()
        raise BadSetting(str(error)) from error
    except Unavailable as error:
        _log.warning("%s; opened all the same, and taken for durable until it answers", error)
    return store
