"""Writes at the same time, and writes that are given up."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from dolmen.errors import Conflict
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.store import BlobStore, Outcome, Put
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    at,
    content,
    info_of,
    names,
    noise,
    recomputed,
    standing,
    streamed,
)
from dolmen.testing.conformance.rivals import RIVALS, same
from dolmen.testing.conformance.setting import Suite

WRITERS = 12


def of(data: bytes, number: int) -> Payload:
    """A payload of these bytes, every other one streamed."""
    return Bytes(data) if number % 2 else streamed(data)


class Races(Suite):
    """Concurrency and cancellation."""

    @pytest.mark.parametrize("size", [10, 100_000])
    async def test_plain_puts_of_one_content_at_once_all_succeed(
        self, store: BlobStore, size: int
    ) -> None:
        data = noise(size)
        answers = await asyncio.gather(
            *(calls.put(store, "name", of(data, number)) for number in range(WRITERS))
        )
        created = [answer.outcome for answer in answers].count(Outcome.CREATED)
        unchanged = [answer.outcome for answer in answers].count(Outcome.UNCHANGED)
        assert created + unchanged == WRITERS
        assert created == 1 or not store.capabilities.conflicts
        assert await content(store, "name") == data
        assert (await store.stat("name")).stamp == max(answer.stamp for answer in answers)
        assert await store.digests() == await recomputed(store)

    @pytest.mark.parametrize("size", [10, 100_000])
    async def test_of_plain_puts_of_differing_content_at_once_one_is_current(
        self, store: BlobStore, size: int
    ) -> None:
        contents = [noise(size, number) for number in range(WRITERS)]
        answers = await asyncio.gather(
            *(calls.put(store, "name", of(data, number)) for number, data in enumerate(contents)),
            return_exceptions=True,
        )
        told = {
            data: answer
            for data, answer in zip(contents, answers, strict=True)
            if isinstance(answer, Put)
        }
        refused = [answer for answer in answers if not isinstance(answer, Put)]
        assert all(isinstance(error, Conflict) for error in refused), refused
        assert len(told) == 1 or not store.capabilities.conflicts
        data = await content(store, "name")
        assert (await store.stat("name")).stamp == told[data].stamp
        assert told[data].stamp == max(answer.stamp for answer in told.values())
        assert await store.digests() == await recomputed(store)

    async def test_stamped_writes_at_once_end_with_the_highest_rank(self, store: BlobStore) -> None:
        rng = random.Random(3)  # noqa: S311 - nothing secret
        names_ = [f"n{number}" for number in range(20)]
        writes = [(name, write) for name in names_ for write in RIVALS]
        rng.shuffle(writes)
        await asyncio.gather(*(store.write(write.of(name)) for name, write in writes))
        highest = max(RIVALS, key=lambda write: write.info("").rank)
        for name in names_:
            assert same(await standing(store, name), highest.info(name))
        assert await store.digests() == await recomputed(store)

    async def test_a_touch_and_a_delete_at_once_end_with_the_newer(self, store: BlobStore) -> None:
        for number in range(10):
            name = f"n{number}"
            info = info_of(name, b"x", stamp=at(3))
            await calls.put(store, name, Bytes(b"x"), stamp=at(1))
            await asyncio.gather(
                calls.touch(store, name, stamp=at(3), checksum=info.checksum, meta=b""),
                calls.delete(store, name, stamp=at(2)),
                return_exceptions=True,  # a touch that comes after the delete finds nothing
            )
            found = await standing(store, name)
            assert found is not None
            assert same(found, info) or found.stamp == at(2)

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
        assert await standing(store, "name") is None
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
            answered, _ = await asyncio.wait([put])
            assert answered == {put}
            found = await standing(store, name)
            if found is not None:
                assert await content(store, name) == data
            else:
                assert put.cancelled()
            # Whatever became of it, the name is in order, and another may write it.
            assert (await calls.put(store, name, Bytes(data))).outcome in (
                Outcome.CREATED,
                Outcome.UNCHANGED,
            )
            assert await content(store, name) == data
        assert await store.digests() == await recomputed(store)
