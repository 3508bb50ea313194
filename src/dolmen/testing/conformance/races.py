"""Writes at the same time, and writes that are cancelled."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from dolmen.errors import Conflict
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.store import BlobStore, Outcome, Put
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    at,
    content,
    found,
    info_of,
    left_by,
    names,
    noise,
    recomputed,
    same,
    streamed,
)
from dolmen.testing.conformance.setting import Suite
from dolmen.testing.conformance.writes import RIVALS

WRITERS = 12


def of(data: bytes, number: int) -> Payload:
    """A payload of these bytes, every other one streamed."""
    return Bytes(data) if number % 2 else streamed(data)


class Races(Suite):
    """Concurrency and cancellation."""

    @pytest.mark.parametrize("size", [10, 100_000])
    @pytest.mark.parametrize("differing", [False, True], ids=["same", "differing"])
    async def test_of_plain_puts_at_once_one_creates_and_its_content_is_current(
        self, store: BlobStore, size: int, differing: bool
    ) -> None:
        contents = [noise(size, number if differing else 0) for number in range(WRITERS)]
        answers = await asyncio.gather(
            *(calls.put(store, "name", of(data, number)) for number, data in enumerate(contents)),
            return_exceptions=True,
        )
        put = [
            (data, answer)
            for data, answer in zip(contents, answers, strict=True)
            if isinstance(answer, Put)
        ]
        refused = [answer for answer in answers if not isinstance(answer, Put)]
        assert all(isinstance(error, Conflict) for error in refused), refused
        assert differing or not refused
        created = [answer for _, answer in put if answer.outcome is Outcome.CREATED]
        assert created
        if store.capabilities.conflicts:
            assert len(created) == 1
            assert len(put) == (1 if differing else WRITERS)
        data, last = max(put, key=lambda each: each[1].stamp)
        assert (await store.stat("name")).stamp == last.stamp
        assert await content(store, "name") == data
        assert await store.digests() == await recomputed(store)

    async def test_stamped_writes_at_once_end_with_the_highest_rank(self, store: BlobStore) -> None:
        rng = random.Random(3)  # noqa: S311 - nothing secret
        writes = [replace(write, name=f"n{number}") for number in range(20) for write in RIVALS]
        rng.shuffle(writes)
        await asyncio.gather(*(store.write(write) for write in writes))
        highest = max(RIVALS, key=lambda write: left_by(write).rank)
        for number in range(20):
            wanted = left_by(replace(highest, name=f"n{number}"))
            assert same(await found(store, f"n{number}"), wanted)
        assert await store.digests() == await recomputed(store)

    async def test_a_touch_and_a_delete_at_once_end_with_the_newer(self, store: BlobStore) -> None:
        for number in range(10):
            name = f"n{number}"
            info = info_of(name, b"x", stamp=at(3))
            await calls.put(store, name, Bytes(b"x"), stamp=at(1))
            await asyncio.gather(
                calls.touch(store, name, stamp=at(3), checksum=info.checksum),
                calls.delete(store, name, stamp=at(2)),
                return_exceptions=True,  # a touch that comes after the delete finds nothing
            )
            left = await found(store, name)
            assert left is not None
            assert same(left, info) or left.stamp == at(2)

    @pytest.mark.parametrize("size", [100, 70_000, 5_000_000])
    async def test_a_put_cancelled_in_its_payload_leaves_nothing(
        self, store: BlobStore, size: int
    ) -> None:
        if size > store.capabilities.largest:
            pytest.skip("this store keeps no blob as large")
        data = noise(size)
        half_way = asyncio.Event()

        async def opened() -> AsyncIterator[Piece]:
            yield data[: size // 2]
            half_way.set()
            await asyncio.Event().wait()  # for ever

        put = asyncio.ensure_future(calls.put(store, "name", Stream(size, opened)))
        await half_way.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert await found(store, "name") is None
        assert await names(calls.listing(store, tombstones=True)) == []
        assert (await calls.put(store, "name", Bytes(b"other"))).outcome is Outcome.CREATED
        assert await content(store, "name") == b"other"

    @pytest.mark.parametrize("size", [100, 200_000])
    async def test_a_put_cancelled_at_any_moment_is_there_whole_or_not_at_all(
        self, store: BlobStore, size: int
    ) -> None:
        data = noise(size)
        for steps in range(12):
            name = f"n{steps}"
            put = asyncio.ensure_future(calls.put(store, name, of(data, steps)))
            for _ in range(steps):
                await asyncio.sleep(0)
            put.cancel()
            await asyncio.wait([put])
            if await found(store, name) is not None:
                assert await content(store, name) == data
            else:
                assert put.cancelled()
            # Whatever became of it, the name is in order, and another may write it.
            await calls.put(store, name, Bytes(data))
            assert await content(store, name) == data
        assert await store.digests() == await recomputed(store)
