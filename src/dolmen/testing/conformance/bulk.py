"""Many blobs at once: bulk operations, writes that race, writes that are cancelled."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import cast

import pytest

from dolmen.errors import (
    BadContent,
    Conflict,
    Corrupt,
    DolmenError,
    InvalidName,
    NotFound,
    TooLarge,
    Unavailable,
)
from dolmen.names import checksum_of, chunk_name
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Outcome, Put, Write
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    MIB,
    at,
    content,
    each,
    failing,
    found,
    info_of,
    left_by,
    names,
    noise,
    read,
    recomputed,
    same,
    streamed,
)
from dolmen.testing.conformance.setting import Suite
from dolmen.testing.conformance.writes import MANIFEST, OVERFULL_META, RIVALS, delete, put


def digest(kind: str, data: bytes) -> str:
    """An object's id, `sha256` or the older `sha1`."""
    return hashlib.new(kind, data, usedforsecurity=False).hexdigest()


WRITERS = 12


def of(data: bytes, number: int) -> Payload:
    """A payload of these bytes, every other one streamed."""
    return Bytes(data) if number % 2 else streamed(data)


class Bulk(Suite):
    """`get_many`, `verify_many` and `write_many`; writes at once; writes that are cancelled."""

    async def test_many_are_read_and_verified_in_the_order_asked(self, store: BlobStore) -> None:
        big = noise(min(5 * MIB, store.capabilities.largest))
        right = [
            put(b"one", 1, META, name="one"),
            put(big, 2, name="big"),
            put(b"chunks", 3, kind=MANIFEST, name="manifest"),
            put(big, 3, name=digest("sha256", big)),
            put(b"two", 3, name=digest("sha1", b"two")),
            put(b"chunks", 3, kind=MANIFEST, name=digest("sha256", b"three")),
            put(b"four", 4, name=chunk_name(b"four")),
            delete(5, "deleted"),
            delete(5, digest("sha256", b"deleted")),
            delete(5, chunk_name(b"deleted")),
            put(b"", 6, name="empty"),
        ]
        wrong = [put(b"six", 7, name=digest(kind, b"five")) for kind in ("sha256", "sha1")]
        async for answer in store.write_many(each([*right, *wrong])):
            assert isinstance(answer, Put)
        asked = ["absent", "a/b", *(write.name for write in right), "one", "absent"]
        wanted = {write.name: write for write in right}
        got = [answer async for answer in store.verify_many(asked)]
        assert [answer.name for answer in got] == asked
        for each_ in got:
            if isinstance(each_, BlobInfo):
                assert same(each_, left_by(wanted[each_.name]))
            else:
                assert isinstance(each_.error, InvalidName if each_.name == "a/b" else NotFound)
        read_ = []
        async for one in store.get_many(asked):
            if isinstance(one, Failed):
                read_.append(one.name)
                assert isinstance(one.error, InvalidName if one.name == "a/b" else NotFound)
            else:
                read_.append(one.info.name)
                assert same(one.info, left_by(wanted[one.info.name]))
                assert await read(one.payload) == wanted[one.info.name].payload.whole
        assert read_ == asked
        async for info in store.verify_many([write.name for write in wrong]):
            assert isinstance(info, Failed)
            assert isinstance(info.error, Corrupt | Unavailable)  # a set of stores passes it over
        assert [answer async for answer in store.verify_many([])] == []

    async def test_payloads_of_many_need_not_be_read(self, store: BlobStore) -> None:
        chosen = ["a", "b", "c"]
        for name in chosen:
            await calls.put(store, name, Bytes(noise(min(5 * MIB, store.capabilities.largest))))
        blobs = [blob async for blob in store.get_many(chosen)]
        assert [blob.info.name for blob in blobs if isinstance(blob, Blob)] == chosen

    async def test_a_write_that_fails_holds_up_no_other(self, store: BlobStore) -> None:
        lost = replace(put(b"", 1, name="lost"), payload=failing(b"x" * 40_000, 100_000))
        failures: list[tuple[Write, type[DolmenError]]] = [
            (replace(put(b"x", 1, name="wrong"), checksum=checksum_of(b"announced")), BadContent),
            (put(b"x", 1, name="a/b"), InvalidName),
            (put(b"x", 1, OVERFULL_META, name="meta"), TooLarge),
            (delete(1, "a b"), InvalidName),
            (replace(delete(1, "timeless"), stamp=0), InvalidName),
            (Write.touch("absent", stamp=at(1), checksum=checksum_of(b"x")), NotFound),
            (lost, DolmenError),
        ]
        writes = []
        for number, (failure, _) in enumerate(failures):
            writes += [put(b"good", 1, name=f"good{number}"), failure]
        writes.append(put(b"good", 1, name="last"))
        answers = [answer async for answer in store.write_many(each(writes))]
        assert len(answers) == len(writes)
        assert all(answer == (Outcome.CREATED, at(1)) for answer in answers[::2]), answers
        for answer, (failure, error) in zip(answers[1::2], failures, strict=True):
            assert isinstance(answer, Failed), failure
            assert answer.name == failure.name
            assert isinstance(answer.error, error), answer
        listed = await names(calls.listing(store, tombstones=True))
        assert sorted(listed) == sorted(write.name for write in writes[::2])

    async def test_many_small_blobs_go_through_in_order(self, store: BlobStore) -> None:
        writes = [put(b"%d" % number, number, name=f"n{number}") for number in range(1500)]
        answers = [answer async for answer in store.write_many(each(writes))]
        assert answers == [(Outcome.CREATED, write.stamp) for write in writes]
        asked = [write.name for write in writes][::-1]
        got = [
            (answer.info.name, await read(answer.payload))
            async for answer in store.get_many(asked)
            if isinstance(answer, Blob)
        ]
        assert got == [(name, name[1:].encode()) for name in asked]

    async def test_a_stream_of_writes_that_breaks_off_raises(self, store: BlobStore) -> None:
        async def writes() -> AsyncIterator[Write]:
            for number in range(3):
                yield put(b"good", 1, name=f"n{number}")
            raise Unavailable("the other store went away")

        with pytest.raises(Unavailable):
            [answer async for answer in store.write_many(writes())]
        for name in await names(store.list()):  # some may still be under way
            assert await content(store, name) == b"good"

    async def test_a_bulk_operation_may_be_abandoned(self, store: BlobStore) -> None:
        writes = [put(noise(1000, number), 1, name=f"n{number}") for number in range(200)]
        for stream in (store.write_many(each(writes)), store.get_many(["n0"] * 200)):
            async for _ in stream:
                break
            await cast("AsyncGenerator[object, None]", stream).aclose()
        for name in await names(store.list()):
            assert await content(store, name) == noise(1000, int(name[1:]))
        answers = [answer async for answer in store.write_many(each(writes))]
        assert all(isinstance(answer, Put) for answer in answers), answers
        assert await store.digests() == await recomputed(store)

    async def test_everything_copied_makes_equal_stores(self, store: BlobStore) -> None:
        first, last = MemoryStore(), MemoryStore()
        await first.write(put(noise(min(5 * MIB, store.capabilities.largest)), 1, name="big"))
        for number in range(200):
            name, data = f"n{number}", noise(number * 50, number)
            await first.write(put(data, number, META if number % 3 else b"", name=name))
            if number % 5 == 0:
                await first.write(delete(number, name))
            if number % 7 == 0:
                await first.write(put(data, number + 1, kind=MANIFEST, name=name))
        for source, target in ((first, store), (store, last)):
            for outcome in (Outcome.CREATED, Outcome.UNCHANGED):
                infos = [info async for info in calls.listing(source, tombstones=True)]
                blobs = source.get_many([info.name for info in infos])
                copies = (Write.copy(blob) async for blob in blobs if isinstance(blob, Blob))
                answers = [answer async for answer in target.write_many(copies)]
                assert answers == [(outcome, info.stamp) for info in infos]
            assert await target.digests() == await source.digests()
        for name in await names(first.list()):
            assert await content(last, name) == await content(first, name)

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
        done = [
            (data, answer)
            for data, answer in zip(contents, answers, strict=True)
            if isinstance(answer, Put)
        ]
        refused = [answer for answer in answers if not isinstance(answer, Put)]
        assert all(isinstance(error, Conflict) for error in refused), refused
        assert differing or not refused
        created = [answer for _, answer in done if answer.outcome is Outcome.CREATED]
        assert created
        if store.capabilities.conflicts:
            assert len(created) == 1
            assert len(done) == (1 if differing else WRITERS)
        data, last = max(done, key=lambda one: one[1].stamp)
        assert (await store.stat("name")).stamp == last.stamp
        assert await content(store, "name") == data
        assert await store.digests() == await recomputed(store)

    async def test_stamped_writes_in_any_order_end_with_the_highest_rank(
        self, store: BlobStore
    ) -> None:
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

        writing = asyncio.ensure_future(calls.put(store, "name", Stream(size, opened)))
        await half_way.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
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
            writing = asyncio.ensure_future(calls.put(store, name, of(data, steps)))
            for _ in range(steps):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.wait([writing])
            if await found(store, name) is not None:
                assert await content(store, name) == data
            else:
                assert writing.cancelled()
            # Whatever became of it, the name is in order, and another may write it.
            await calls.put(store, name, Bytes(data))
            assert await content(store, name) == data
        assert await store.digests() == await recomputed(store)
