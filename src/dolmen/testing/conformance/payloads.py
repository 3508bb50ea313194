"""Bytes in, the same bytes out: sizes, streams, ranges, and payloads that fail."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import pytest

from dolmen.errors import BadContent, Corrupt, DolmenError, TooLarge, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Stream
from dolmen.record import Kind
from dolmen.store import BlobStore, Outcome
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    MIB,
    at,
    content,
    failing,
    found,
    info_of,
    names,
    noise,
    read,
    same,
    streamed,
)
from dolmen.testing.conformance.setting import Suite

BLOCK = 65_536
SIZES = [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, MIB, 4 * MIB, 4 * MIB + 1, 9 * MIB + 12_345]


class Payloads(Suite):
    """What is read is what was put."""

    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
    async def test_every_size_reads_as_it_was_put(self, store: BlobStore, whole: bool) -> None:
        for size in SIZES:
            name, data = f"n{size}", noise(size)
            pieces = (1, 4095, 65_537, 7, 300_001) if size > MIB else (1, 4095, 7)
            payload = Bytes(data) if whole else streamed(data, pieces)
            if size > store.capabilities.largest:
                with pytest.raises(TooLarge):
                    await calls.put(store, name, payload)
                assert await found(store, name) is None
                continue
            answer = await calls.put(store, name, payload, checksum=checksum_of(data))
            blob = await store.get(name)
            assert same(blob.info, info_of(name, data, stamp=answer.stamp))
            assert blob.payload.size == size
            assert blob.payload.whole is None or bytes(blob.payload.whole) == data
            assert await read(blob.payload) == data
            if blob.payload.rereadable:
                assert await read(blob.payload) == data

    async def test_every_range_reads_as_that_part(self, store: BlobStore) -> None:
        for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 200_000, 5 * MIB):
            if size > store.capabilities.largest:
                continue
            name, data = f"n{size}", noise(size)
            await calls.put(store, name, streamed(data, (100_000,)))
            edges = {0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, size - 1, size, size + 1}
            starts = sorted(edge for edge in edges if 0 <= edge <= size + 1)
            for number, start in enumerate(starts):
                for stop in [*starts[number : None if size < MIB else number + 3], 1 << 50]:
                    blob = await store.get(name, byte_range=(start, stop))
                    assert blob.info.size == size
                    assert blob.payload.size == len(data[start:stop]), (size, start, stop)
                    assert await read(blob.payload) == data[start:stop], (size, start, stop)

    @pytest.mark.parametrize("size", [10, 100_000, 2 * MIB, 5 * MIB])
    async def test_nothing_of_a_payload_that_fails_is_ever_visible(
        self, store: BlobStore, size: int
    ) -> None:
        if size > store.capabilities.largest:
            pytest.skip("this store keeps no blob as large")
        data = noise(size)
        before = await calls.put(store, "kept", Bytes(b"before"))
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
        for name, stamp in (("name", at(1)), ("kept", before.stamp + 1)):
            with pytest.raises(DolmenError):
                await calls.put(store, name, failing(data[: size // 2], size), stamp=stamp)
        assert await found(store, "name") is None
        assert same(await store.stat("kept"), info_of("kept", b"before", stamp=before.stamp))
        assert await content(store, "kept") == b"before"
        assert await names(calls.listing(store, tombstones=True)) == ["kept"]
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
        pieces = aiter((await store.get("name")).payload)
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
        data = noise(min(6 * MIB, store.capabilities.largest))
        await calls.put(store, "name", Bytes(data))
        for _ in range(20):
            async for piece in (await store.get("name")).payload:
                assert data.startswith(bytes(piece))
                break
        assert await content(store, "name") == data
