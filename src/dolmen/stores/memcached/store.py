"""The store over memcached servers; see the package."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from urllib.parse import unquote_to_bytes, urlsplit

from blake3 import blake3

from dolmen import metadata
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import (
    BadContent,
    BadSetting,
    Corrupt,
    DolmenError,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from dolmen.names import CHECKSUM_SIZE, check_name, checksum_of, partition_of
from dolmen.payload import Bytes, Payload, Stream, read_whole
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, Capabilities, Condition, Put, Range
from dolmen.stores.memcached.item import HERE, PART, Item, decode, decode_part, encode_part
from dolmen.stores.memcached.server import Server
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

LARGEST = 1 << 30
WHOLE = 8 << 20
"""Blobs up to this size are read whole before any of it is given."""
_ABANDONED = 24 * 3600
"""Seconds after which the parts of an upload that was not completed go."""
_ROUNDS = 1000
_PAGE = 256
_PREFIX = "dolmen"


class MemcachedStore(OneByOne):
    """A blob store in memcached. `now` returns seconds since 1970, `clock` gives stamps."""

    capabilities = Capabilities(
        durable=False, largest=LARGEST, digests=False, ordered=False, conflicts=True
    )
    reads_ahead = 16

    def __init__(
        self,
        servers: Sequence[tuple[str, int]],
        prefix: str = _PREFIX,
        *,
        clock: Clock | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._servers = [Server(host, port) for host, port in servers]
        self._prefix = prefix.encode() + b":"
        self._clock, self._now = clock or Clock(), now
        self._closed = False

    # Items

    def _server(self, name: str) -> Server:
        if self._closed:
            raise Unavailable("the store is closed")
        return self._servers[partition_of(name) % len(self._servers)]

    def _key(self, name: str) -> bytes:
        return self._prefix + b"b:" + name.encode()

    def _part(self, parts: bytes, number: int) -> bytes:
        return b"%bp:%b:%d" % (self._prefix, parts.hex().encode(), number)

    async def _look(self, name: str) -> tuple[Item | None, bytes | None]:
        """What stands under a name, and the token by which a swap tells that it still does."""
        answer = await self._server(name).read(b"mg %b v c\r\n" % self._key(name))
        if answer.value is None:
            return None, None
        return decode(answer.value), answer.flag(b"c")

    async def _swap(self, item: Item, token: bytes | None) -> bool:
        """Put an item in the place of the one with this token, or where none is."""
        name, value = item.info.name, item.encode()
        condition = b"ME" if token is None else b"C" + token
        command = b"ms %b %d %b\r\n%b\r\n" % (self._key(name), len(value), condition, value)
        return (await self._server(name).write(command)).status == b"HD"

    async def _forget(self, name: str, token: bytes | None) -> bool:
        command = b"md %b C%b\r\n" % (self._key(name), token or b"0")
        return (await self._server(name).write(command)).status == b"HD"

    async def _change(
        self,
        name: str,
        judge: Callable[[BlobInfo | None], Verdict],
        made: Callable[[Item | None], Item],
    ) -> tuple[Put, bool]:
        """Judge what stands and swap what was made, until nobody was faster.

        Returns the answer, and whether what was made stands.
        """
        check_name(name)
        for _ in range(_ROUNDS):
            standing, token = await self._look(name)
            verdict = judge(standing.info if standing else None)
            if verdict.action is Action.KEEP:
                return verdict.answer, False
            item = made(standing)
            item.info.stamp, item.info.arrived = verdict.answer.stamp, int(self._now())
            if await self._swap(item, token):
                if standing is not None and standing.parts != item.parts:
                    await self._drop_parts(standing)
                return verdict.answer, True
        raise Unavailable(f"{name} is being written by others all the time; try again")

    # Writing

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
        info = BlobInfo(check_name(name), payload.size, kind, 0, NO_CHECKSUM, metadata.check(meta))
        if info.size > LARGEST:
            raise TooLarge(f"{info.size} bytes are more than this store keeps ({LARGEST})")
        if info.size <= PART:
            data = bytes(await read_whole(payload))
            info.checksum = checksum_of(data)
            item = Item(info, HERE, data)
        else:
            item = await self._put_parts(info, payload)

        def judge(standing: BlobInfo | None) -> Verdict:
            return judge_put(
                name,
                standing,
                damaged=False,
                kind=kind,
                checksum=info.checksum,
                metadata=meta,
                stamp=stamp,
                clock=self._clock,
            )

        try:
            if checksum is not None and checksum != info.checksum:
                raise BadContent(f"the data of {name} does not have the checksum announced")
            # Written anew even where only the stamp is: a part of what stands may be gone.
            put, stands = await self._change(name, judge, lambda _: item)
        except OutcomeUnknown:
            raise  # the parts may be in use; else they go by themselves
        except DolmenError:
            await self._drop_parts(item)
            raise
        await (self._settle_parts(item) if stands else self._drop_parts(item))
        return put

    async def _put_parts(self, info: BlobInfo, payload: Payload) -> Item:
        """Store the data in parts, which go by themselves unless they are settled."""
        item = Item(info, os.urandom(len(HERE)))
        hasher, held, number = blake3(), bytearray(), 0
        async for piece in payload:
            hasher.update(piece)
            held += piece
            while len(held) >= PART:
                await self._put_part(item, number, bytes(held[:PART]))
                del held[:PART]
                number += 1
        if held:
            await self._put_part(item, number, bytes(held))
        info.checksum = hasher.digest(CHECKSUM_SIZE)
        return item

    async def _put_part(self, item: Item, number: int, data: bytes) -> None:
        value = encode_part(data)
        key = self._part(item.parts, number)
        command = b"ms %b %d T%d\r\n%b\r\n" % (key, len(value), _ABANDONED, value)
        await self._server(item.info.name).write(command)

    async def _settle_parts(self, item: Item) -> None:
        """Let parts stay."""
        server = self._server(item.info.name)
        for number in range(item.count):
            await server.write(b"mg %b T0\r\n" % self._part(item.parts, number))

    async def _drop_parts(self, item: Item) -> None:
        server = self._server(item.info.name)
        try:
            for number in range(item.count):
                await server.write(b"md %b\r\n" % self._part(item.parts, number))
        except DolmenError:
            pass  # nobody refers to them; the memory is used again when it is needed

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """See `BlobStore.touch`."""
        metadata.check(meta)

        def judge(standing: BlobInfo | None) -> Verdict:
            return judge_touch(
                name, standing, damaged=False, checksum=checksum, metadata=meta, stamp=stamp
            )

        def made(standing: Item | None) -> Item:
            assert standing is not None
            return replace(standing, info=replace(standing.info, metadata=meta))

        return (await self._change(name, judge, made))[0]

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """See `BlobStore.delete`."""
        put, _ = await self._change(
            name,
            lambda standing: judge_delete(standing, stamp=stamp, clock=self._clock),
            lambda _: Item(BlobInfo(name, 0, Kind.TOMBSTONE, 0, NO_CHECKSUM)),
        )
        return put

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """See `BlobStore.remove`."""
        check_name(name)
        for _ in range(_ROUNDS):
            standing, token = await self._look(name)
            info = standing.info if standing else None
            if not may_remove(info, if_stamp=if_stamp, min_age=min_age, now=self._now()):
                return False
            if await self._forget(name, token):
                assert standing is not None
                await self._drop_parts(standing)
                return True
        raise Unavailable(f"{name} is being written by others all the time; try again")

    # Reading

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        check_name(name)
        for last in (False, True):
            item, token = await self._look(name)
            info = _live(name, item)
            assert item is not None
            payload = await self._payload(item, *(byte_range or (0, info.size)))
            if payload is not None:
                return Blob(info, payload)
            if last:  # it was not replaced meanwhile: some of it was dropped
                await self._forget(name, token)
                await self._drop_parts(item)
        raise NotFound(f"{name} is not here any more: memcached dropped some of it")

    async def _payload(self, item: Item, start: int, stop: int) -> Payload | None:
        """The bytes of a range, None when some are gone. Of a long one they may go later."""
        stop = min(stop, item.info.size)
        start = min(start, stop)
        if item.parts == HERE:
            return Bytes(item.data[start:stop])
        if stop - start > WHOLE:
            there = await self._all_there(item)
            return Stream(stop - start, lambda: self._pieces(item, start, stop)) if there else None
        try:
            return Bytes(b"".join([piece async for piece in self._pieces(item, start, stop)]))
        except Corrupt:
            return None

    async def _all_there(self, item: Item) -> bool:
        keys = [self._part(item.parts, number) for number in range(item.count)]
        answers = await self._server(item.info.name).read_all([b"mg %b\r\n" % key for key in keys])
        return all(answer.status == b"HD" for answer in answers)

    async def _pieces(self, item: Item, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes of a range; raises `Corrupt` for a part that is gone or damaged."""
        name, size = item.info.name, item.info.size
        if start == stop:
            return
        for number in range(start // PART, (stop - 1) // PART + 1):
            first = number * PART
            answer = await self._server(name).read(b"mg %b v\r\n" % self._part(item.parts, number))
            data = decode_part(answer.value or b"", min(PART, size - first))
            if data is None:
                raise Corrupt(f"memcached dropped a part of {name}")
            yield data[max(start - first, 0) : stop - first]

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """See `BlobStore.stat`."""
        item, _ = await self._look(check_name(name))
        return _live(name, item, tombstones=tombstones)

    async def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`. All names are held in memory and sorted."""
        start = (partition_of(after), after) if after is not None else (-1, "")
        wanted = set(partitions)
        names = [key.decode() for key in await self._keys(b"b:" + prefix.encode())]
        places = sorted((partition_of(name), name) for name in names)
        places = [place for place in places if place > start and place[0] in wanted]
        for first in range(0, len(places), _PAGE):
            page = [name for _, name in places[first : first + _PAGE]]
            found = await self._look_all(page)
            for name in page:
                item = found.get(name)
                if item is not None and (tombstones or item.info.kind != Kind.TOMBSTONE):
                    yield item.info

    async def _keys(self, kind: bytes) -> Iterable[bytes]:
        """What stands behind the prefix and a letter in the keys that begin with both."""
        own = self._prefix + kind
        found: set[bytes] = set()
        for server in self._servers:
            for line in await server.lines(b"lru_crawler metadump hash\r\n"):
                word = line.partition(b" ")[0]
                key = unquote_to_bytes(word.removeprefix(b"key="))
                if key.startswith(own):
                    found.add(key[len(self._prefix) + 2 :])
        return found

    async def _look_all(self, names: Sequence[str]) -> dict[str, Item]:
        found: dict[str, Item] = {}
        for server in self._servers:
            its = [name for name in names if self._server(name) is server]
            answers = await server.read_all([b"mg %b v\r\n" % self._key(name) for name in its])
            for name, answer in zip(its, answers, strict=True):
                item = decode(answer.value) if answer.value is not None else None
                if item is not None:
                    found[name] = item
        return found

    async def digests(self) -> Digests:
        """See `BlobStore.digests`. Lists everything."""
        slots: dict[int, Slot] = {}
        async for info in self.list(tombstones=True):
            slot = slots.setdefault(partition_of(info.name), Slot())
            name = info.name.encode()
            slot.add(
                info.size, entry_hash(name, info.stamp, info.kind, info.checksum, info.metadata)
            )
        return Digests(slots)

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        encoded = key.encode()
        name = blake3(encoded).hexdigest(16).encode()
        body = len(encoded).to_bytes(2) + encoded + value
        command = b"ms %bn:%b %d\r\n%b\r\n" % (self._prefix, name, len(body), body)
        await self._servers[0].write(command)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        keys = [b"mg %bn:%b v\r\n" % (self._prefix, key) for key in await self._keys(b"n:")]
        notes: dict[str, bytes] = {}
        for answer in await self._servers[0].read_all(keys):
            if answer.value is not None:
                end = 2 + int.from_bytes(answer.value[:2])
                notes[answer.value[2:end].decode()] = answer.value[end:]
        return notes

    async def condition(self) -> Condition:
        """See `BlobStore.condition`: memory, and whether some was needed for something else."""
        used = total = evicted = 0
        for server in self._servers:
            words = (line.split() for line in await server.lines(b"stats\r\n"))
            stats = {word[1]: word[2] for word in words if len(word) == 3}
            used += int(stats.get(b"bytes", 0))
            total += int(stats.get(b"limit_maxbytes", 0))
            evicted += int(stats.get(b"evictions", 0))
        remarks = ["memcached is not durable: a restart empties it"]
        if evicted:
            remarks.append(f"memcached dropped {evicted} items for want of memory")
        return Condition(max(total - used, 0), total, remarks=remarks)

    async def aclose(self) -> None:
        """See `BlobStore.aclose`."""
        self._closed = True
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)  # for the connections to be told


def _live(name: str, item: Item | None, *, tombstones: bool = False) -> BlobInfo:
    if item is None:
        raise NotFound(f"{name} is not here")
    if item.info.kind == Kind.TOMBSTONE and not tombstones:
        raise NotFound(f"{name} was deleted", stamp=item.info.stamp)
    return item.info


async def open_url(url: str) -> MemcachedStore:
    """The store at `memcached://HOST:PORT[,HOST:PORT…][/PREFIX]`; raises `BadSetting`.

    Servers that can't be reached now may come up later.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/") or _PREFIX
    servers = []
    for address in parts.netloc.split(","):
        host, _, port = address.rpartition(":") if ":" in address else (address, "", "11211")
        bare = host.removeprefix("[").removesuffix("]")
        if not bare or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            break
        servers.append((bare, int(port)))
    else:
        if len(prefix) <= 64 and prefix.replace("-", "").replace("_", "").isalnum():
            return MemcachedStore(servers, prefix)
    raise BadSetting(
        f"{url!r} names no memcached: write memcached://HOST:PORT, several HOST:PORT with commas, "
        "and perhaps /PREFIX of letters and digits"
    )
