"""Damaged copies: found, never handed out, never built upon, replaced by a valid write."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import pytest

from dolmen.errors import Conflict, Corrupt, NotFound
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob, BlobInfo, BlobStore, Failed, Outcome, Put
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
    streamed,
)
from dolmen.testing.conformance.rivals import Rival, same
from dolmen.testing.conformance.setting import Place, Suite

SIZES = pytest.mark.parametrize("size", [100, 200_000])
OLD, OTHER = Rival(at(5), Kind.BLOB, noise(100)), noise(100, 1)


async def quarantined(store: BlobStore) -> list[str]:
    """The names of the copies known to be damaged."""
    return [name async for name in calls.quarantined(store)]


class Damage(Suite):
    """What becomes of a copy whose kept bytes were changed."""

    @SIZES
    async def test_damaged_bytes_are_never_handed_out(
        self, store: BlobStore, place: Place, size: int
    ) -> None:
        data = noise(size)
        for name in ("one", "good", "two", "three"):
            await calls.put(store, name, streamed(data), stamp=at(1), meta=META)
        for name in ("one", "two", "three"):
            await self.damage(store, place, name)
        with pytest.raises(Corrupt):
            await content(store, "one")
        got = b""
        try:
            for start in range(0, size, 50_000):
                blob = await store.get("two", byte_range=(start, start + 50_000))
                got += await read(blob.payload)
        except Corrupt:
            assert data.startswith(got)
        else:
            pytest.fail("every part of a damaged blob was handed out")
        answers = []
        async for answer in store.get_many(["one", "good", "three"]):
            try:
                answers.append(isinstance(answer, Blob) and await read(answer.payload) == data)
            except Corrupt:
                answers.append(False)
        assert answers == [False, True, False]

    @SIZES
    async def test_verify_many_finds_what_is_damaged(
        self, store: BlobStore, place: Place, size: int
    ) -> None:
        for name in ("one", "bad", "two"):
            await calls.put(store, name, Bytes(noise(size)), stamp=at(1))
        await self.damage(store, place, "bad")
        for _ in range(2):
            one, bad, two = [answer async for answer in store.verify_many(["one", "bad", "two"])]
            assert isinstance(one, BlobInfo)
            assert isinstance(two, BlobInfo)
            assert isinstance(bad, Failed)
            assert isinstance(bad.error, Corrupt)
        assert await quarantined(store) == (["bad"] if self.quarantines else [])

    @SIZES
    @pytest.mark.parametrize("stamp", [None, at(1), at(2)], ids=["plain", "again", "newer"])
    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
    async def test_an_acknowledged_put_of_the_same_content_makes_a_damaged_copy_sound(
        self, store: BlobStore, place: Place, size: int, stamp: int | None, whole: bool
    ) -> None:
        data = noise(size)
        await calls.put(store, "name", Bytes(data), stamp=at(1))
        await self.damage(store, place, "name")
        payload = Bytes(data) if whole else streamed(data)
        answer = await calls.put(store, "name", payload, stamp=stamp, meta=META)
        assert answer.outcome in (Outcome.CREATED, Outcome.UNCHANGED)
        assert same(await store.stat("name"), info_of("name", data, stamp=answer.stamp, meta=META))
        assert await content(store, "name") == data
        assert await quarantined(store) == []
        assert await store.digests() == await recomputed(store)

    @SIZES
    async def test_a_touch_does_not_find_a_damaged_copy(
        self, store: BlobStore, place: Place, size: int
    ) -> None:
        data = noise(size)
        await calls.put(store, "name", Bytes(data), stamp=at(1))
        await self.damage(store, place, "name")
        for _ in range(2):
            with pytest.raises(NotFound):
                await calls.touch(store, "name", stamp=at(2), checksum=checksum_of(data))
        with pytest.raises(Corrupt):
            await content(store, "name")

    async def test_a_copy_known_to_be_damaged_leaves_listings_and_digests(
        self, store: BlobStore, place: Place
    ) -> None:
        for name in ("good", "bad"):
            await calls.put(store, name, Bytes(OLD.data), stamp=at(5))
        await self.damage(store, place, "bad")
        for _ in range(2 if self.reopens else 1):
            with pytest.raises(Corrupt):
                await content(store, "bad")
            if self.quarantines:
                with pytest.raises(Corrupt):
                    await store.stat("bad")
                assert await names(store.list()) == ["good"]
                assert await quarantined(store) == ["bad"]
                assert (await store.digests()).count == 1
            else:
                assert await quarantined(store) == []
            assert await store.digests() == await recomputed(store)
            if self.reopens:
                await store.aclose()
                store = await self.make_store(place)
        await store.aclose()

    @pytest.mark.parametrize(
        ("write", "expected"),
        [
            (OLD, Outcome.CREATED),
            (OLD._replace(stamp=at(6), meta=META), Outcome.CREATED),
            (OLD._replace(stamp=at(4)), Outcome.CREATED),
            (OLD._replace(stamp=at(4), kind=Kind.MANIFEST), Outcome.SUPERSEDED),
            (Rival(at(4), Kind.BLOB, OTHER), Outcome.SUPERSEDED),
            (Rival(at(6), Kind.BLOB, OTHER), Outcome.CREATED),
            (Rival(at(4), Kind.TOMBSTONE), Outcome.SUPERSEDED),
            (Rival(at(5), Kind.TOMBSTONE), Outcome.CREATED),
        ],
        ids=["again", "newer", "older", "older manifest", "older other", "newer other",
             "older delete", "delete"],
    )  # fmt: skip
    async def test_a_copy_known_to_be_damaged_is_replaced_by_its_content_and_what_is_newer(
        self, store: BlobStore, place: Place, write: Rival, expected: Outcome
    ) -> None:
        if not self.quarantines:
            pytest.skip("this store does not remember which copies are damaged")
        await store.write(OLD.of("name"))
        await self.damage(store, place, "name")
        with pytest.raises(Corrupt):
            await content(store, "name")
        if expected is Outcome.SUPERSEDED:
            assert await store.write(write.of("name")) == Put(expected, OLD.stamp)
            assert await quarantined(store) == ["name"]
        else:
            assert await store.write(write.of("name")) == Put(expected, write.stamp)
            assert same(await calls.current(store, "name"), write.info("name"))
            if write.kind is not Kind.TOMBSTONE:
                assert await content(store, "name") == write.data
            assert await quarantined(store) == []
        assert await store.digests() == await recomputed(store)

    async def test_plain_writes_and_removals_of_a_copy_known_to_be_damaged(
        self, store: BlobStore, place: Place
    ) -> None:
        for name in ("put", "deleted", "removed", "kept"):
            await store.write(OLD.of(name))
            await self.damage(store, place, name)
            with pytest.raises(Corrupt):
                await content(store, name)
        assert (await calls.put(store, "put", Bytes(OLD.data))).stamp > OLD.stamp
        assert await content(store, "put") == OLD.data
        assert (await calls.delete(store, "deleted")).stamp > OLD.stamp
        assert not await calls.remove(store, "removed", if_stamp=OLD.stamp + 1)
        assert await calls.remove(store, "removed", if_stamp=OLD.stamp)
        with pytest.raises(NotFound):
            await store.get("removed")
        if store.capabilities.conflicts:
            with pytest.raises(Conflict):
                await calls.put(store, "kept", Bytes(OTHER))
        assert await quarantined(store) == (["kept"] if self.quarantines else [])
        assert await store.digests() == await recomputed(store)
