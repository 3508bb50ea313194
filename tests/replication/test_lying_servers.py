"""Servers that answer nonsense: a run ends, says so, spoils nothing, and may be run again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable

import pytest

from dolmen.errors import Unavailable
from dolmen.http import start_server
from dolmen.http.messages import Request, Response, Streamed
from dolmen.names import checksum_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import block_sums, decode_head, encode_head, head_size
from dolmen.replication import Report, replicate
from dolmen.servers.blob import BlobServer
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from replication.setting import no_time

Lie = Callable[[bytes], bytes]
DATA = [b"blob %d" % number * (number * number) for number in range(40)]
NAMES = [hashlib.sha256(data).hexdigest() for data in DATA]


class Liar:
    """A blob server on `store`; `lies` turns the bodies of its answers into others, by path."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.lies: dict[bytes, Lie] = {}
        self.asked: list[bytes] = []
        self._honest = BlobServer(store, describes="memory:").handle

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.raw_path)
        response = self._honest(request)
        if not isinstance(response, Response):
            response = await response
        lie = self.lies.get(request.raw_path)
        if lie is None:
            return response
        body = response.body
        whole = await everything(body) if isinstance(body, Streamed) else bytes(body)  # type: ignore[arg-type]
        return Response(response.status, response.headers, lie(whole))


async def everything(pieces: Streamed) -> bytes:
    return b"".join([bytes(piece) async for piece in pieces])


@contextlib.asynccontextmanager
async def reached(handle: Liar) -> AsyncIterator[BlobStore]:
    server = await start_server(handle)
    try:
        store = await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
        yield store
        await store.aclose()
    finally:
        await server.close()


def apart(stream: bytes) -> list[bytes]:
    """The records of a stream."""
    records = []
    while stream:
        size = decode_head(stream).size
        records.append(stream[:size])
        stream = stream[size:]
    return records


def record(name: str, data: bytes, *, checksum: bytes | None = None, stamp: int = 9) -> bytes:
    head = encode_head(1, name.encode(), b"", len(data), stamp, checksum or checksum_of(data))
    return head + data + block_sums(data)


def entry(name: bytes, *, kind: int = 1, metadata: bytes = b"") -> bytes:
    return encode_head(kind, name, metadata, 1, 9, b"c" * 16)


MARK = 8


def entries(listing: bytes) -> list[bytes]:
    """The entries of a listing, the last of which is its end."""
    found = []
    while listing:
        size = head_size(listing)
        found.append(listing[:size])
        listing = listing[size:]
    return found


def half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def nothing_at_all(_body: bytes) -> bytes:
    return b""


READS: dict[str, Lie] = {
    "nothing": nothing_at_all,
    "cut": half,
    "garbage": lambda body: b"\0garbage" * len(body),
    "page": lambda _: b"<html>It works!</html>",
    "other names": lambda body: b"".join(record(f"not-asked-{at}", b"x") for at in range(40)),
    "impossible names": lambda body: b"".join(record("../../etc/passwd", b"x") for _ in range(40)),
    "twice": lambda body: body + body,
    "each twice": lambda body: b"".join(each * 2 for each in apart(body)),
    "then garbage": lambda body: body + b"garbage",
    "backwards": lambda body: b"".join(reversed(apart(body))),
    "other data": lambda body: b"".join(record(name, b"no", checksum=b"c" * 16) for name in NAMES),
}
LISTINGS: dict[str, Lie] = {
    "nothing": nothing_at_all,
    "cut": lambda body: body[:-9],
    "garbage": lambda body: b"\xff\0garbage\n" * 30,
    "page": lambda _: b"<html>It works!</html>\n" * 9,
    "a flipped bit": lambda body: body[:30] + bytes([body[30] ^ 1]) + body[31:],
    "impossible kinds": lambda body: entry(b"a", kind=9) + body,
    "impossible names": lambda body: entry(b"../../etc/passwd") + body,
    "half a letter": lambda body: entry(b"\xed\xa0\x80") + body,
    "impossible metadata": lambda body: entry(b"a", metadata=b"***") + body,
    "a refusal": lambda body: entry(b"a", kind=7, metadata=b"Moon\nis full") + body,
    "without end": lambda body: b"".join(entries(body)[:-1]),
    "more behind the end": lambda body: body + body,
    "always another page": lambda body: b"".join(entries(body)[:-1]) + entry(b"a", kind=MARK),
    "nothing but pages": lambda _: entry(b"a", kind=MARK),
    "a page that is none": lambda body: b"".join(entries(body)[:-1]) + entry(b"/", kind=MARK),
    "the same for ever": lambda body: b"".join(entries(body)[:1] * 3 + entries(body)[-1:]),
}
ANSWERS: dict[str, Lie] = {
    "nothing": nothing_at_all,
    "too few": lambda body: body[: 9 * 5],
    "too many": lambda body: body * 3,
    "cut": lambda body: body[: len(body) // 2 + 1],
    "garbage": lambda body: b"\xff\0garbage\n" * 3,
    "page": lambda _: b"<html>It works!</html>\n" * 9,
    "impossible outcomes": lambda body: (b"\x09" + bytes(8)) * (len(body) // 9),
    "an error without an end": lambda body: b"\xff" + bytes(8) + b"\xff" * 4 + b"Full",
    "unheard errors": lambda body: (b"\xff" + bytes(8) + b"\4\0\0\0Moon") * (len(body) // 9),
}
DIGESTS: dict[str, Lie] = {
    "cut": lambda body: body[:-7],
    "garbage": lambda body: b"\xff" * len(body),
    "page": lambda _: b"<html>It works!</html>",
}
CASES = [
    *((("source", "/records/read", what)) for what in READS),
    *((side, "/records/list", what) for side in ("source", "destination") for what in LISTINGS),
    *((("destination", "/records", what)) for what in ANSWERS),
    *((side, "/digests", what) for side in ("source", "destination") for what in DIGESTS),
]
LIES = {
    "/records/read": READS,
    "/records/list": LISTINGS,
    "/records": ANSWERS,
    "/digests": DIGESTS,
}
HARMLESS = {"twice", "each twice", "then garbage", "too few", "too many", "the same for ever"}
"""What may go unnoticed: everything that was asked for came along with the rest."""


async def run(source: BlobStore, destination: BlobStore) -> Report:
    async with asyncio.timeout(30):
        return await replicate(source, destination, pause=no_time)


@pytest.mark.parametrize(("side", "path", "what"), CASES, ids=[" ".join(case) for case in CASES])
async def test_a_server_that_answers_nonsense_spoils_nothing(
    side: str, path: str, what: str
) -> None:
    source, destination = Liar(MemoryStore()), Liar(MemoryStore())
    for at, (name, data) in enumerate(zip(NAMES, DATA, strict=True)):
        await calls.put(source.store, name, Bytes(data), stamp=5)
        if at % 4 == 0:
            await calls.put(destination.store, name, Bytes(data), stamp=4)
    async with reached(source) as left, reached(destination) as right:
        liar = source if side == "source" else destination
        liar.lies[path.encode()] = LIES[path][what]
        report = await run(left, right)
        assert len(liar.asked) < 300
        if what not in HARMLESS:
            assert not report.complete
            assert report.failing in (side, None)
        await unspoilt(destination.store)
        liar.lies.clear()
        assert (await run(left, right)).complete
        await unspoilt(destination.store)
        assert await source.store.digests() == await destination.store.digests()


async def unspoilt(store: MemoryStore) -> None:
    async for info in calls.listing(store, tombstones=True):
        assert info.name in NAMES
        data = await read_whole((await store.get(info.name)).payload)
        assert data == DATA[NAMES.index(info.name)]


async def test_a_tombstone_nobody_asked_for_deletes_nothing() -> None:
    source, destination = Liar(MemoryStore()), Liar(MemoryStore())
    await calls.put(source.store, "a", Bytes(b"a"), stamp=5)
    await calls.put(destination.store, "b", Bytes(b"b"), stamp=5)
    tombstone = encode_head(3, b"b", b"", 0, 9, bytes(16))
    source.lies[b"/records/read"] = lambda _: tombstone
    async with reached(source) as left, reached(destination) as right:
        report = await run(left, right)
    assert isinstance(report.stopped, Unavailable)
    assert report.failing == "source"
    assert (await destination.store.stat("b")).size == 1


async def test_a_large_blob_that_is_cut_is_read_on_from_there_and_holds_up_no_other() -> None:
    source, destination = Liar(MemoryStore()), Liar(MemoryStore())
    large = bytes(5 << 20)
    blobs = {"small-1": b"1", "large": large, "small-2": b"2", "small-3": b"3"}
    for name, data in blobs.items():
        await calls.put(source.store, name, Bytes(data), stamp=5)
    source.lies[b"/records/read"] = lambda body: body[: 3 << 20]
    async with reached(source) as left, reached(destination) as right:
        report = await run(left, right)
        assert report.complete
        assert report.copied == 4
    assert await source.store.digests() == await destination.store.digests()
