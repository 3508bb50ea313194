"""A dolmen blob server as a store, asked over HTTP.

What the far store promises holds here too: `capabilities` are those it gave when it was first
asked, and each write's answer says anew whether it is durable. One blob at a time goes by GET and
PUT; listings, deletes, touches and everything in bulk by streams of records and entries
(`dolmen.stores.records`, `dolmen.stores.wire`).

A request that may have been acted on is never repeated: the caller gets `OutcomeUnknown` and
decides. What comes is only believed as far as it answers what was asked: names in order, one
answer each; anything else is `Unavailable`.

Read first: `dolmen.store`, `dolmen.stores.responses`, `dolmen.stores.batches`.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from dolmen.digests import Digests
from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from dolmen.http import Client, ClientResponse
from dolmen.names import check_name, checksum_of, is_chunk_name, is_object_id, partition_of
from dolmen.payload import EMPTY, Piece
from dolmen.record import Kind
from dolmen.resolve import check, check_key
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import (
    ALL_PARTITIONS,
    EVERYTHING,
    Blob,
    BlobInfo,
    Condition,
    Failed,
    Listing,
    Outcome,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores import record_reader, records
from dolmen.stores.base import OneByOne, write_any, write_in_batches
from dolmen.stores.batches import Batches
from dolmen.stores.responses import (
    ANSWER_MAX,
    NONSENSE,
    Asked,
    Unsatisfiable,
    body_of,
    info_of,
    object_of,
    payload_of,
    senseless,
)
from dolmen.stores.wire import decode_answers, decode_entries

_PAGE = 10_000
_NAMES = 2048
"""How many blobs are asked for, or partitions listed, in one request."""
_WRITES, _BATCH = 512, 4 << 20
"""How many small blobs, and how many bytes of them, are written in one request."""
_LARGE = 1 << 20
"""From this size on a blob is put by itself: its bytes are copied less often than in a record."""
_UNDER_WAY = 4
"""How many batches, or blobs by themselves, are written at once."""
_TOGETHER = 262_144
"""The most bytes of data that the answer to a shared request to read may have."""
_TINY = 16_384
"""The largest blob that is written in a shared request, in bytes."""
_PATIENCE = 0.02
"""Seconds that small requests wait for those under way before another one is begun."""


class DolmenServer(Asked, OneByOne):
    """A dolmen blob server at an address. Connections are made when they are needed."""

    def __init__(self, address: str, client: Client, is_other: Callable[[], None]) -> None:
        super().__init__(address, client, is_other)
        self._digests: tuple[bytes, Digests] | None = None
        together = partial(Batches, at_once=2, patience=_PATIENCE)
        self._gets: Batches[str, Blob] = together(self._get_together, most=32)
        self._writes: Batches[Write, Put] = together(self._send, most=16)

    # Writing

    def write(self, write: Write) -> Awaitable[Put]:
        check(write)
        payload = write.payload
        if write.stamp is None or payload.whole is None or payload.size > _TINY:
            return self._write_alone(write)
        if write.kind == Kind.TOUCH:  # a large blob may be read to its end before that
            return self._touch(write)
        return self._writes.ask(write)

    async def _touch(self, write: Write) -> Put:
        answer = (await self._send([write]))[0]
        if isinstance(answer, Put):
            return answer
        try:
            raise answer
        finally:
            del answer  # an error and a frame that hold each other keep what the caller holds

    async def _write_alone(self, write: Write) -> Put:
        if write.kind == Kind.TOMBSTONE:
            response = await self._ask("DELETE", f"/blob/{write.name}")
            headers = response.headers
            said = {
                "status": headers.get(b"x-dolmen-status", b"").decode("latin-1"),
                "stamp": headers.get(b"x-dolmen-stamp", b"").decode("latin-1"),
            }
        else:
            response = await self._put(write)
            said = await object_of(self.address, response, OutcomeUnknown)
        self._learn_durable(response)
        try:
            if said["status"] == "OK":
                outcome = Outcome.CREATED if response.status == 201 else Outcome.UNCHANGED
            else:
                outcome = Outcome(said["status"])
            return Put(outcome, parse_stamp(said["stamp"]))
        except NONSENSE as error:
            raise senseless(self.address, error, OutcomeUnknown) from error

    async def _put(self, write: Write) -> ClientResponse:
        headers: list[tuple[bytes, bytes]] = []
        if write.stamp is not None:
            headers.append((b"X-Dolmen-Stamp", format_stamp(write.stamp).encode()))
        if write.kind == Kind.MANIFEST:
            headers.append((b"X-Dolmen-Kind", b"manifest"))
        if write.checksum is not None:
            headers.append((b"X-Dolmen-Checksum", write.checksum.hex().encode()))
        if write.metadata:
            headers.append((b"X-Dolmen-Metadata", b64encode(write.metadata)))
        return await self._ask("POST", f"/blob/{write.name}", headers, body_of(write.payload))

    def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        """A few batches are under way at once."""
        bounds = {"most": _WRITES, "room": _BATCH, "at_once": _UNDER_WAY}
        return write_in_batches(writes, self._written, _size, **bounds)

    async def _written(self, batch: Sequence[Write]) -> Sequence[Put | Failed]:
        if _size(batch[0]) == _BATCH:
            return [await write_any(self, batch[0])]
        answers = zip(batch, await self._send(batch), strict=True)
        return [
            each if isinstance(each, Put) else Failed(write.name, each) for write, each in answers
        ]

    async def _send(self, batch: Sequence[Write]) -> Sequence[Put | DolmenError]:
        """The answers to stamped writes in memory, sent as records in one request."""
        refused: dict[int, DolmenError] = {}
        framed: list[Piece] = []
        for at, write in enumerate(batch):
            try:  # here, for a single one that is not allowed would fail the whole stream there
                framed += records.frame(check(write))
            except DolmenError as error:
                refused[at] = error
        failure: DolmenError = OutcomeUnknown(f"{self.address} did not answer for every write")
        came: list[Put | DolmenError] = []
        try:
            response = await self._ask("POST", "/records", (), b"".join(framed))
            self._learn_durable(response)
            came.extend(decode_answers(await response.body.read(ANSWER_MAX)))
        except Corrupt as error:
            failure = senseless(self.address, error, OutcomeUnknown)
        except DolmenError as error:
            failure = error
        left = iter(came)
        return [refused.get(at) or next(left, failure) for at in range(len(batch))]

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        items = [[check_name(name), format_stamp(stamp)] for name, stamp in removes]
        body = json.dumps({"removes": items, "min_age": min_age, "epoch": epoch}).encode()
        response = await self._ask("POST", "/records/remove", (), body, reads=False)
        said = await object_of(self.address, response, OutcomeUnknown)
        removed = said.get("removed")
        if not isinstance(removed, list) or len(removed) != len(removes):
            raise OutcomeUnknown(f"{self.address} did not answer for every name to remove")
        return [each is True for each in removed]

    # Reading

    def get(self, name: str, *, byte_range: Range | None = None) -> Awaitable[Blob]:
        check_name(name)
        if byte_range is not None or is_chunk_name(name):
            return self._get_alone(name, byte_range)
        return self._get(name)

    async def _get(self, name: str) -> Blob:
        try:
            return await self._gets.ask(name)
        except TooLarge:
            return await self._get_alone(name, None)

    async def _get_together(self, names: Sequence[str]) -> Sequence[Blob | DolmenError]:
        """Blobs, or why each could not be had: `TooLarge` for one that is to be asked for alone."""
        if len(names) == 1:
            return [await self._get_alone(names[0], None)]
        return [self._taken(each) async for each in self._read(names, most=_TOGETHER)]

    def _taken(self, answer: Blob | Failed) -> Blob | DolmenError:
        if isinstance(answer, Failed):
            error = answer.error
            return Unavailable(str(error)) if isinstance(error, BadContent) else error
        info = answer.info
        if info.kind == Kind.TOMBSTONE:
            return NotFound(f"{self.address}: {info.name} was deleted", stamp=info.stamp)
        return self._wrong(answer) or answer

    def _wrong(self, blob: Blob) -> Corrupt | None:
        """What is wrong with a blob. Its reader checks an object or chunk against the name."""
        info, data = blob.info, blob.payload.whole
        named = info.kind == Kind.BLOB and (is_object_id(info.name) or is_chunk_name(info.name))
        if named or data is None or checksum_of(data) == info.checksum:
            return None
        return Corrupt(f"{self.address} sent {info.name} with another checksum than it has")

    async def _get_alone(self, name: str, byte_range: Range | None) -> Blob:
        headers: list[tuple[bytes, bytes]] = []
        if byte_range is not None:
            start, stop = byte_range
            if stop <= start:
                return Blob(await self.stat(name), EMPTY)
            headers.append((b"Range", b"bytes=%d-%d" % (start, stop - 1)))
        try:
            response = await self._ask("GET", f"/blob/{name}", headers)
        except Unsatisfiable:
            return Blob(await self.stat(name), EMPTY)
        info = info_of(self.address, name, response.headers)
        blob = Blob(info, payload_of(self.address, response.body))
        if response.status != 206 and (wrong := self._wrong(blob)):
            raise wrong
        return blob

    async def stat(self, name: str) -> BlobInfo:
        response = await self._ask("HEAD", f"/blob/{check_name(name)}")
        return info_of(self.address, name, response.headers)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        wanted, after = listing.partitions, listing.after
        everything = len(wanted) == len(ALL_PARTITIONS)
        last = (partition_of(after), after) if after is not None else (-1, "")
        for first in range(0, 1 if everything else len(wanted), _NAMES):
            order: dict[str, object] = {
                "prefix": listing.prefix,
                "tombstones": listing.tombstones,
                "quarantined": listing.quarantined,
                "limit": _PAGE,
                "partitions": None if everything else list(wanted[first : first + _NAMES]),
                "after": after,
            }
            while True:
                before = last
                async for item in self._entries("/records/list", order):
                    if isinstance(item, Failed):
                        raise item.error
                    if isinstance(item, records.Mark):
                        order["after"] = item.word
                        continue
                    place = (partition_of(item.name), item.name)
                    if place <= last:
                        raise Unavailable(
                            f"{self.address} lists out of order: {last[1]}, then {item.name}"
                        )
                    last = place
                    yield item
                if not order["after"]:
                    break
                if last == before:
                    raise Unavailable(f"{self.address} lists nothing behind {last[1]!r}")

    async def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """No data is sent."""
        for first in range(0, len(names), _NAMES):
            some = names[first : first + _NAMES]
            left = iter(some)
            async for item in self._entries("/records/verify", {"names": [*some]}):
                if isinstance(item, records.Mark):
                    continue
                if next(left, None) != item.name:
                    raise Unavailable(f"{self.address} verified {item.name}, not what is next")
                yield item
            if (name := next(left, None)) is not None:
                raise Unavailable(f"{self.address} did not say how {name} is")

    async def _entries(
        self, target: str, order: dict[str, Any]
    ) -> AsyncIterator[BlobInfo | Failed | records.Mark]:
        async with await self._order(target, order) as response:
            try:
                async for item in decode_entries(aiter(response.body)):
                    yield item
            except Corrupt as error:
                raise senseless(self.address, error, Unavailable) from error

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """A blob at which the stream breaks off has failed; those behind it are asked for anew."""
        return self._read(names)

    async def _read(
        self, names: Sequence[str], *, most: int | None = None
    ) -> AsyncIterator[Blob | Failed]:
        done = 0
        while done < len(names):
            stop = min(done + _NAMES, len(names))
            failure: DolmenError = Unavailable(f"{self.address} did not answer for {names[done]}")
            astray, left = False, math.inf if most is None else most
            order = {"names": [*names[done:stop]], "most": most}
            async with await self._order("/records/read", order) as came:
                try:
                    async for answer in record_reader.decode(aiter(came.body)):
                        name = answer.name if isinstance(answer, Failed) else answer.info.name
                        left -= 0 if isinstance(answer, Failed) else answer.payload.size
                        if done == stop or name != names[done] or left < 0:
                            failure = Unavailable(f"{self.address} sent {name}, not what is next")
                            astray = True
                            break
                        done += 1
                        yield answer
                except DolmenError as error:
                    failure = error
            if astray:
                raise failure
            if done < stop:
                yield Failed(names[done], failure)
                done += 1

    async def digests(self) -> Digests:
        known = self._digests
        condition = [(b"If-None-Match", known[0])] if known is not None else []
        response = await self._ask("GET", "/digests", condition)
        if response.status == 304 and known is not None:
            return known[1]
        digests = Digests.decode(await response.body.read(ANSWER_MAX))
        self._digests = response.headers.get(b"etag", b""), digests
        return digests

    # The store itself

    async def note(self, key: str, value: bytes) -> None:
        order = {"key": check_key(key), "value": b64encode(value).decode()}
        await self._ask("POST", "/notes", (), json.dumps(order).encode())

    async def notes(self) -> dict[str, bytes]:
        said = await object_of(self.address, await self._ask("GET", "/notes"), Unavailable)
        try:
            return {key: b64decode(value) for key, value in said.items()}
        except NONSENSE as error:
            raise senseless(self.address, error, Unavailable) from error

    async def condition(self) -> Condition:
        said = await object_of(self.address, await self._ask("GET", "/status"), Unavailable)
        return Condition(
            said.get("free_bytes"),
            said.get("total_bytes"),
            writable=said.get("writable", True),
            reasons=said.get("degraded", []),
            remarks=said.get("remarks", []),
        )

    async def aclose(self) -> None:
        await self._client.close()
        await self._gets.aclose()
        await self._writes.aclose()


# Which writes go together, as records in one request, and which alone


def _size(write: Write) -> int:
    """The bytes of data it brings; of one that takes a request of its own, those of a whole batch.

    Only what carries a stamp is a record.
    """
    payload = write.payload
    if payload.whole is None or payload.size >= _LARGE or write.stamp is None:
        return _BATCH
    return payload.size
