"""Bytes in, the same bytes out: sizes, streams, ranges, and payloads that fail."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dolmen.errors import BadContent, Corrupt, DolmenError, NotFound, TooLarge, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.record import Kind
from dolmen.store import BlobStore, Outcome
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    at,
    content,
    info_of,
    names,
    noise,
    read,
    standing,
    streamed,
)
from dolmen.testing.conformance.rivals import same
from dolmen.testing.conformance.setting import Suite

KIB, MIB = 1 << 10, 1 << 20
SIZES = [
    0,
    1,
    KIB,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    MIB,
    4 * MIB,
    4 * MIB + 1,
    9 * MIB + 12_345,
]
BROKEN_SIZES = [10, 100_000, 2 * MIB, 5 * MIB]


def failing(data: bytes, size: int) -> Stream:
    """A payload that gives `data` and then can't be read on."""

    async def opened() -> AsyncIterator[Piece]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]
        raise Unavailable("the payload's source went away")

    return Stream(size, opened)


class Payloads(Suite):
    """What is read is what was put."""

    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
    @pytest.mark.parametrize("size", SIZES)
    async def test_every_size_reads_as_it_was_put(
        self, store: BlobStore, size: int, whole: bool
    ) -> None:
        data = noise(size)
        pieces = (1, 4095, 65_537, 7, 300_001) if size > MIB else (1, 4095, 7)
        payload = Bytes(data) if whole else streamed(data, pieces)
        if size > store.capabilities.largest:
            with pytest.raises(TooLarge):
                await calls.put(store, "name", payload)
            assert await standing(store, "name") is None
            return
        answer = await calls.put(store, "name", payload, checksum=checksum_of(data))
        blob = await store.get("name")
        assert same(blob.info, info_of("name", data, stamp=answer.stamp))
        assert blob.payload.size == size
        assert blob.payload.whole is None or bytes(blob.payload.whole) == data
        assert await read(blob.payload) == data
        if blob.payload.rereadable:
            assert await read(blob.payload) == data

    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000, 5 * MIB])
    async def test_every_range_reads_as_that_part(self, store: BlobStore, size: int) -> None:
        if size > store.capabilities.largest:
            pytest.skip("this store keeps no blob as large")
        data = noise(size)
        await calls.put(store, "name", streamed(data))
        edges = {0, 1, 65_535, 65_536, 65_537, 131_072, size // 2, size - 1, size, size + 1}
        places = sorted({edge for edge in edges if 0 <= edge <= size + 1})
        for number, start in enumerate(places):
            for stop in places[number:]:
                blob = await store.get("name", byte_range=(start, stop))
                assert blob.info.size == size
                assert blob.payload.size == len(data[start:stop]), (start, stop)
                assert await read(blob.payload) == data[start:stop], (start, stop)
        assert await read((await store.get("name", byte_range=(0, 1 << 50))).payload) == data

    async def test_a_range_of_what_is_absent_is_not_found(self, store: BlobStore) -> None:
        with pytest.raises(NotFound):
            await store.get("absent", byte_range=(0, 1))

    @pytest.mark.parametrize("size", BROKEN_SIZES)
    async def test_nothing_of_a_payload_that_fails_is_ever_visible(
        self, store: BlobStore, size: int
    ) -> None:
        data = noise(size)
        before = await calls.put(store, "standing", Bytes(b"before"))
        if size > store.capabilities.largest:
            pytest.skip("this store keeps no blob as large")
        broken: list[tuple[Stream, type[DolmenError]]] = [
            (failing(b"", size), DolmenError),
            (failing(data[: size // 2], size), DolmenError),
            (failing(data, size), DolmenError),
            (streamed(data[:-1]), BadContent),
            (streamed(data + b"!"), BadContent),
        ]
        for payload, error in broken:
            payload.size = size
            with pytest.raises(error):
                await calls.put(store, "name", payload)
        for name, stamp in (("name", at(1)), ("standing", before.stamp + 1)):
            with pytest.raises(DolmenError):
                await calls.put(store, name, failing(data[: size // 2], size), stamp=stamp)
        assert await standing(store, "name") is None
        assert same(
            await store.stat("standing"), info_of("standing", b"before", stamp=before.stamp)
        )
        assert await content(store, "standing") == b"before"
        assert await names(calls.listing(store, tombstones=True)) == ["standing"]
        assert (await store.digests()).count == 1
        assert (await calls.put(store, "name", streamed(data))).outcome is Outcome.CREATED
        assert await content(store, "name") == data

    @pytest.mark.parametrize("write", ["delete", "replace", "remove"])
    async def test_a_read_under_way_never_gives_wrong_bytes(
        self, store: BlobStore, write: str
    ) -> None:
        size = min(6 * MIB, store.capabilities.largest)
        data = noise(size)
        await calls.put(store, "name", Bytes(data), stamp=at(1))
        payload = (await store.get("name")).payload
        pieces = aiter(payload)
        got = bytes(await anext(pieces))
        if write == "delete":
            await calls.delete(store, "name", stamp=at(2))
        elif write == "replace":
            await calls.put(store, "name", Bytes(noise(size, 1)), stamp=at(2), kind=Kind.MANIFEST)
        else:
            assert await calls.remove(store, "name", if_stamp=at(1))
        try:
            async for piece in pieces:
                got += bytes(piece)
        except (Corrupt, Unavailable):
            assert data.startswith(got)
        else:
            assert got == data

    async def test_a_read_may_be_abandoned(self, store: BlobStore) -> None:
        size = min(6 * MIB, store.capabilities.largest)
        await calls.put(store, "name", Bytes(noise(size)))
        for _ in range(20):
            async for piece in (await store.get("name")).payload:
                assert noise(size).startswith(bytes(piece))
                break
        assert await content(store, "name") == noise(size)
