"""Many blobs at once, in order, with failures among them."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
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
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Outcome, Put
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    at,
    content,
    info_of,
    names,
    noise,
    read,
    recomputed,
    standing,
    streamed,
)
from dolmen.testing.conformance.payloads import failing
from dolmen.testing.conformance.rivals import same
from dolmen.testing.conformance.setting import Suite
from dolmen.testing.conformance.writes import OVERFULL_META

MIB = 1 << 20


async def each(blobs: Iterable[Blob]) -> AsyncIterator[Blob]:
    """These blobs, as a stream."""
    for blob in blobs:
        yield blob


def blob_of(
    name: str, data: bytes, stamp: int, kind: Kind = Kind.BLOB, *, meta: bytes = b""
) -> Blob:
    """A blob in memory."""
    return Blob(info_of(name, data, stamp=stamp, kind=kind, meta=meta), Bytes(data))


async def copy_all(source: BlobStore, target: BlobStore) -> None:
    """Copy everything from one store to another, as replication does."""
    every = await names(calls.listing(source, tombstones=True))

    async def blobs() -> AsyncIterator[Blob]:
        async for answer in source.get_many(every):
            assert isinstance(answer, Blob), answer
            yield answer

    async for answer in calls.put_many(target, blobs()):
        assert isinstance(answer, Put), answer


class Bulk(Suite):
    """`get_many`, `verify_many` and `put_many`."""

    async def test_verify_many_answers_for_every_name_in_order(self, store: BlobStore) -> None:
        big = noise(min(5 * MIB, store.capabilities.largest))
        right = [
            blob_of("one", b"one", at(1), meta=META),
            blob_of("big", big, at(2)),
            blob_of(hashlib.sha256(big).hexdigest(), big, at(3)),
            blob_of(hashlib.sha1(b"two", usedforsecurity=False).hexdigest(), b"two", at(3)),
            blob_of(hashlib.sha256(b"three").hexdigest(), b"chunks", at(3), Kind.MANIFEST),
            blob_of(chunk_name(b"four"), b"four", at(4)),
            blob_of("deleted", b"", at(5), Kind.TOMBSTONE),
            blob_of(chunk_name(b"deleted"), b"", at(5), Kind.TOMBSTONE),
            blob_of(hashlib.sha256(b"deleted").hexdigest(), b"", at(5), Kind.TOMBSTONE),
            blob_of("empty", b"", at(6)),
        ]
        wrong = [
            blob_of(hashlib.sha256(b"five").hexdigest(), b"six", at(7)),
            blob_of(hashlib.sha1(b"five", usedforsecurity=False).hexdigest(), b"six", at(7)),
        ]
        async for put in calls.put_many(store, each([*right, *wrong])):
            assert isinstance(put, Put)
        asked = [blob.info.name for blob in [*right, *wrong]] + ["absent"]
        found = [answer async for answer in store.verify_many(asked)]
        assert [answer.name for answer in found] == asked
        for answer, blob in zip(found, right, strict=False):
            assert isinstance(answer, BlobInfo)
            assert same(answer, blob.info)
        for answer in found[len(right) : -1]:
            assert isinstance(answer, Failed)
            assert isinstance(answer.error, Corrupt | Unavailable)  # a set of stores passes it over
        assert isinstance(found[-1], Failed)
        assert isinstance(found[-1].error, NotFound)
        assert [answer async for answer in store.verify_many([])] == []

    async def test_get_many_answers_for_every_name_in_order(self, store: BlobStore) -> None:
        big = noise(min(5 * MIB, store.capabilities.largest))
        blobs = {
            "one": blob_of("one", b"one", at(1), meta=META),
            "big": blob_of("big", big, at(2)),
            "manifest": blob_of("manifest", b"chunks", at(3), Kind.MANIFEST),
            "deleted": blob_of("deleted", b"", at(4), Kind.TOMBSTONE),
            "empty": blob_of("empty", b"", at(5)),
        }
        async for _ in calls.put_many(store, each(blobs.values())):
            pass
        asked = ["absent", "deleted", "one", "big", "a/b", "one", "manifest", "empty", "absent"]
        answered = []
        async for answer in store.get_many(asked):
            if isinstance(answer, Failed):
                answered.append(answer.name)
                expected = InvalidName if answer.name == "a/b" else NotFound
                assert isinstance(answer.error, expected)
                continue
            answered.append(answer.info.name)
            wanted = blobs[answer.info.name]
            assert same(answer.info, wanted.info)
            assert await read(answer.payload) == wanted.payload.whole
        assert answered == asked

    async def test_get_many_may_pass_over_payloads(self, store: BlobStore) -> None:
        size = min(5 * MIB, store.capabilities.largest)
        chosen = ["a", "b", "c"]
        for name in chosen:
            await calls.put(store, name, Bytes(noise(size)))
        answered = [
            answer.info.name async for answer in store.get_many(chosen) if isinstance(answer, Blob)
        ]
        assert answered == chosen

    async def test_write_many_keeps_stamps_kinds_and_metadata(self, store: BlobStore) -> None:
        big = noise(min(5 * MIB, store.capabilities.largest))
        await calls.put(store, "standing", Bytes(b"standing"), stamp=at(9))
        await calls.put(store, "raised", Bytes(b"raised"), stamp=at(1))
        blobs = [
            blob_of("a", b"a", at(1), meta=META),
            blob_of("b", b"", at(2), Kind.TOMBSTONE),
            blob_of("standing", b"lower", at(8)),
            Blob(info_of("c", big, stamp=at(3)), streamed(big, (100_000,))),
            blob_of("d", b"chunks", at(4), Kind.MANIFEST),
            blob_of("raised", b"raised", at(5), meta=META),
            blob_of("e", b"", at(6)),
        ]
        answers = [answer async for answer in calls.put_many(store, each(blobs))]
        wanted = [Put(Outcome.CREATED, blob.info.stamp) for blob in blobs]
        wanted[2] = Put(Outcome.SUPERSEDED, at(9))
        wanted[5] = Put(Outcome.UNCHANGED, at(5))
        assert answers == wanted
        for blob in blobs:
            if blob.info.name != "standing":
                assert same(await standing(store, blob.info.name), blob.info)
        assert await content(store, "standing") == b"standing"
        assert await content(store, "c") == big
        assert await store.digests() == await recomputed(store)

    async def test_a_blob_that_fails_holds_up_no_other(self, store: BlobStore) -> None:
        wrong = blob_of("wrong", b"announced", at(1))
        wrong.payload = Bytes(b"different")
        tombstone = blob_of("a b", b"", at(1), Kind.TOMBSTONE)
        lost = Blob(info_of("lost", b"x" * 100_000, stamp=at(1)), failing(b"x" * 40_000, 100_000))
        failures: list[tuple[Blob, type[DolmenError]]] = [
            (wrong, BadContent),
            (blob_of("a/b", b"x", at(1)), InvalidName),
            (blob_of("meta", b"x", at(1), meta=OVERFULL_META), TooLarge),
            (tombstone, InvalidName),
            (blob_of("described", b"", at(1), Kind.TOMBSTONE, meta=META), BadContent),
            (blob_of("filled", b"data", at(1), Kind.TOMBSTONE), BadContent),
            (blob_of("timeless", b"", 0, Kind.TOMBSTONE), InvalidName),
            (lost, DolmenError),
        ]
        blobs = []
        for number, (failure, _) in enumerate(failures):
            blobs += [blob_of(f"good{number}", b"good", at(1)), failure]
        blobs.append(blob_of("last", b"good", at(1)))
        answers = [answer async for answer in calls.put_many(store, each(blobs))]
        assert len(answers) == len(blobs)
        assert all(answer == (Outcome.CREATED, at(1)) for answer in answers[::2]), answers
        for answer, (failure, error) in zip(answers[1::2], failures, strict=True):
            assert isinstance(answer, Failed), failure
            assert answer.name == failure.info.name
            assert isinstance(answer.error, error), answer
        listed = await names(calls.listing(store, tombstones=True))
        assert sorted(listed) == sorted(blob.info.name for blob in blobs[::2])

    async def test_many_small_blobs_go_through_in_order(self, store: BlobStore) -> None:
        blobs = [blob_of(f"n{number}", b"%d" % number, at(number)) for number in range(3000)]
        answers = [answer async for answer in calls.put_many(store, each(blobs))]
        assert answers == [Put(Outcome.CREATED, blob.info.stamp) for blob in blobs]
        asked = [blob.info.name for blob in blobs][::-1]
        got = [
            (answer.info.name, await read(answer.payload))
            async for answer in store.get_many(asked)
            if isinstance(answer, Blob)
        ]
        assert got == [(name, name[1:].encode()) for name in asked]

    async def test_a_stream_of_writes_that_breaks_off_raises(self, store: BlobStore) -> None:
        async def blobs() -> AsyncIterator[Blob]:
            for number in range(3):
                yield blob_of(f"n{number}", b"good", at(1))
            raise Unavailable("the other store went away")

        async def put_all() -> list[Put | Failed]:
            return [answer async for answer in calls.put_many(store, blobs())]

        with pytest.raises(Unavailable):
            await put_all()
        for name in await names(store.list()):  # some may still be under way
            assert await content(store, name) == b"good"

    async def test_a_bulk_operation_may_be_abandoned(self, store: BlobStore) -> None:
        blobs = [blob_of(f"n{number}", noise(1000, number), at(1)) for number in range(200)]
        for stream in (calls.put_many(store, each(blobs)), store.get_many(["n0"] * 200)):
            async for _ in stream:
                break
            await cast("AsyncGenerator[object, None]", stream).aclose()
        for name in await names(store.list()):
            assert await content(store, name) == noise(1000, int(name[1:]))
        answers = [answer async for answer in calls.put_many(store, each(blobs))]
        assert all(isinstance(answer, Put) for answer in answers), answers
        assert await store.digests() == await recomputed(store)

    async def test_everything_copied_makes_equal_stores(self, store: BlobStore) -> None:
        first, last = MemoryStore(), MemoryStore()
        for number in range(200):
            name, data = f"n{number}", noise(number * 50, number)
            await calls.put(
                first, name, Bytes(data), stamp=at(number), meta=META if number % 3 else b""
            )
            if number % 5 == 0:
                await calls.delete(first, name, stamp=at(number))
            if number % 7 == 0:
                await calls.put(first, name, Bytes(data), stamp=at(number) + 1, kind=Kind.MANIFEST)
            if number % 11 == 0:
                checksum = checksum_of(data)
                await calls.put(first, name, Bytes(data), stamp=at(number) + 2)
                await calls.touch(first, name, stamp=at(number) + 3, checksum=checksum, meta=META)
        await copy_all(first, store)
        assert await store.digests() == await first.digests()
        await copy_all(store, last)
        assert await last.digests() == await first.digests()
        for name in await names(first.list()):
            assert await content(last, name) == await content(first, name)
