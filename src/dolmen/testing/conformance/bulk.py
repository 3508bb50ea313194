"""Many blobs at once, in order, with failures among them."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import cast

import pytest

from dolmen.errors import (
    BadContent,
    Corrupt,
    DolmenError,
    InvalidName,
    NotFound,
    TooLarge,
    Unavailable,
)
from dolmen.names import checksum_of, chunk_name
from dolmen.payload import Bytes
from dolmen.record import Kind
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
    left_by,
    names,
    noise,
    read,
    recomputed,
    same,
)
from dolmen.testing.conformance.setting import Suite
from dolmen.testing.conformance.writes import OVERFULL_META


def put(name: str, data: bytes, ms: int, kind: Kind = Kind.BLOB, *, meta: bytes = b"") -> Write:
    """A put of this name."""
    return Write(name, Bytes(data), kind, meta, at(ms))


def delete(name: str, ms: int) -> Write:
    """A delete of this name."""
    return Write.tombstone(name, stamp=at(ms))


def sha1(data: bytes) -> str:
    """The older form of an object's id."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    """An object's id."""
    return hashlib.sha256(data).hexdigest()


class Bulk(Suite):
    """`get_many`, `verify_many` and `write_many`."""

    async def test_many_are_read_and_verified_in_the_order_asked(self, store: BlobStore) -> None:
        big = noise(min(5 * MIB, store.capabilities.largest))
        right = [
            put("one", b"one", 1, meta=META),
            put("big", big, 2),
            put("manifest", b"chunks", 3, Kind.MANIFEST),
            put(sha256(big), big, 3),
            put(sha1(b"two"), b"two", 3),
            put(sha256(b"three"), b"chunks", 3, Kind.MANIFEST),
            put(chunk_name(b"four"), b"four", 4),
            delete("deleted", 5),
            delete(sha256(b"deleted"), 5),
            delete(chunk_name(b"deleted"), 5),
            put("empty", b"", 6),
        ]
        wrong = [put(sha256(b"five"), b"six", 7), put(sha1(b"five"), b"six", 7)]
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
        lost = replace(put("lost", b"", 1), payload=failing(b"x" * 40_000, 100_000))
        failures: list[tuple[Write, type[DolmenError]]] = [
            (replace(put("wrong", b"x", 1), checksum=checksum_of(b"announced")), BadContent),
            (put("a/b", b"x", 1), InvalidName),
            (put("meta", b"x", 1, meta=OVERFULL_META), TooLarge),
            (delete("a b", 1), InvalidName),
            (replace(delete("timeless", 1), stamp=0), InvalidName),
            (Write.touch("absent", stamp=at(1), checksum=checksum_of(b"x")), NotFound),
            (lost, DolmenError),
        ]
        writes = []
        for number, (failure, _) in enumerate(failures):
            writes += [put(f"good{number}", b"good", 1), failure]
        writes.append(put("last", b"good", 1))
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
        writes = [put(f"n{number}", b"%d" % number, number) for number in range(1500)]
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
                yield put(f"n{number}", b"good", 1)
            raise Unavailable("the other store went away")

        with pytest.raises(Unavailable):
            [answer async for answer in store.write_many(writes())]
        for name in await names(store.list()):  # some may still be under way
            assert await content(store, name) == b"good"

    async def test_a_bulk_operation_may_be_abandoned(self, store: BlobStore) -> None:
        writes = [put(f"n{number}", noise(1000, number), 1) for number in range(200)]
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
        await first.write(put("big", noise(min(5 * MIB, store.capabilities.largest)), 1))
        for number in range(200):
            name, data = f"n{number}", noise(number * 50, number)
            await first.write(put(name, data, number, meta=META if number % 3 else b""))
            if number % 5 == 0:
                await first.write(delete(name, number))
            if number % 7 == 0:
                await first.write(put(name, data, number + 1, Kind.MANIFEST))
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
