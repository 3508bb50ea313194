"""What is kept: damaged copies, the store's notes and condition, closing it and opening it again.

A damaged copy is found, never handed out, never built upon, replaced by a valid write.
"""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest

from dolmen.errors import Conflict, Corrupt, DolmenError, InvalidName, NotFound
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import IDENTITY, Blob, BlobInfo, BlobStore, Failed, Outcome, Put, Write
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    at,
    content,
    crowd,
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
from dolmen.testing.conformance.reads import fill
from dolmen.testing.conformance.setting import Place, Suite

SIZES = pytest.mark.parametrize("size", [100, 200_000])
OLD = Write("", Bytes(noise(100)), stamp=at(5))
OTHER = replace(OLD, payload=Bytes(noise(100, 1)))


async def quarantined(store: BlobStore) -> list[str]:
    """The names of the copies known to be damaged."""
    return [name async for name in calls.quarantined(store)]


async def in_parts(store: BlobStore, name: str, data: bytes) -> None:
    """Read a blob by ranges; each must be right, whatever is damaged elsewhere."""
    for start in range(0, len(data), 50_000):
        blob = await store.get(name, byte_range=(start, start + 50_000))
        assert await read(blob.payload) == data[start : start + 50_000]


async def noted(store: BlobStore) -> dict[str, bytes]:
    """Every note but the identity."""
    return {key: value for key, value in (await store.notes()).items() if key != IDENTITY}


class Upkeep(Suite):
    """Damage, notes, condition, closing, opening again."""

    @SIZES
    async def test_damage_is_found_by_every_read_and_never_handed_out(
        self, store: BlobStore, place: Place, size: int
    ) -> None:
        data = noise(size)
        bad = ["get", "range", "many", "verify"]
        for name in [*bad, "good"]:
            await calls.put(store, name, streamed(data), stamp=at(1), meta=META)
        for name in bad:
            await self.damage(store, place, name)
        with pytest.raises(Corrupt):
            await content(store, "get")
        with pytest.raises(Corrupt):
            await in_parts(store, "range", data)
        right = []
        async for answer in store.get_many(["many", "good"]):
            try:
                right.append(isinstance(answer, Blob) and await read(answer.payload) == data)
            except Corrupt:
                right.append(False)
        assert right == [False, True]
        for _ in range(2):
            failed, info = [answer async for answer in store.verify_many(["verify", "good"])]
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, Corrupt)
            assert isinstance(info, BlobInfo)
        assert sorted(await quarantined(store)) == (sorted(bad) if self.quarantines else [])

    @SIZES
    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
    async def test_an_acknowledged_put_of_the_same_content_makes_a_damaged_copy_sound(
        self, store: BlobStore, place: Place, size: int, whole: bool
    ) -> None:
        data = noise(size)
        for number, stamp in enumerate((None, at(1), at(2))):
            name = f"n{number}"
            await calls.put(store, name, Bytes(data), stamp=at(1))
            await self.damage(store, place, name)
            payload = Bytes(data) if whole else streamed(data)
            answer = await calls.put(store, name, payload, stamp=stamp, meta=META)
            assert answer.outcome in (Outcome.CREATED, Outcome.UNCHANGED)
            assert same(await store.stat(name), info_of(name, data, stamp=answer.stamp, meta=META))
            assert await content(store, name) == data
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
            await store.write(replace(OLD, name=name))
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

    async def test_a_copy_known_to_be_damaged_is_replaced_by_its_content_and_what_is_newer(
        self, store: BlobStore, place: Place
    ) -> None:
        if not self.quarantines:
            pytest.skip("this store does not remember which copies are damaged")
        kept = []
        for number, (write, outcome) in enumerate(
            [
                (OLD, Outcome.CREATED),
                (replace(OLD, stamp=at(6), metadata=META), Outcome.CREATED),
                (replace(OLD, stamp=at(4)), Outcome.CREATED),
                (replace(OLD, stamp=at(4), kind=Kind.MANIFEST), Outcome.SUPERSEDED),
                (replace(OTHER, stamp=at(4)), Outcome.SUPERSEDED),
                (replace(OTHER, stamp=at(6)), Outcome.CREATED),
                (Write.tombstone("", stamp=at(4)), Outcome.SUPERSEDED),
                (Write.tombstone("", stamp=at(5)), Outcome.CREATED),
                (replace(OLD, stamp=None), Outcome.CREATED),
                (Write.tombstone("", stamp=None), Outcome.CREATED),
                (replace(OTHER, stamp=None), Conflict),
            ]
        ):
            write = replace(write, name=f"n{number}")
            await store.write(replace(OLD, name=write.name))
            await self.damage(store, place, write.name)
            with pytest.raises(Corrupt):
                await content(store, write.name)
            if outcome is Outcome.CREATED:
                put = await store.write(write)
                assert put.outcome is outcome, number
                assert put.stamp == write.stamp or (write.stamp is None and put.stamp > at(5))
                assert same(await found(store, write.name), left_by(write, stamp=put.stamp))
                if write.kind != Kind.TOMBSTONE:
                    assert await content(store, write.name) == write.payload.whole
            elif outcome is Outcome.SUPERSEDED:
                assert await store.write(write) == Put(Outcome.SUPERSEDED, at(5)), number
                kept.append(write.name)
            else:
                if store.capabilities.conflicts:
                    with pytest.raises(Conflict):
                        await store.write(write)
                kept.append(write.name)
        assert sorted(await quarantined(store)) == sorted(kept)
        for name in kept:
            assert not await calls.remove(store, name, if_stamp=at(4))
            assert await calls.remove(store, name, if_stamp=at(5))
            assert await found(store, name) is None
        assert await quarantined(store) == []
        assert await store.digests() == await recomputed(store)

    async def test_a_store_has_an_identity_that_never_changes(
        self, store: BlobStore, place: Place
    ) -> None:
        identity = (await store.notes())[IDENTITY]
        assert re.fullmatch(rb"[0-9a-f]{32}", identity)
        with pytest.raises(InvalidName):
            await store.note(IDENTITY, b"0" * 32)
        await store.note("other", b"x")
        if self.reopens:
            await store.aclose()
            store = await self.make_store(place)
        assert (await store.notes())[IDENTITY] == identity
        await store.aclose()

    async def test_notes_are_kept_beside_the_blobs(self, store: BlobStore) -> None:
        assert await noted(store) == {}
        await store.note("scrub", b"\x00binary\xff")
        await store.note("compared with http://127.0.0.1:3001/", b"")
        await store.note("scrub", b"later")
        wanted = {"scrub": b"later", "compared with http://127.0.0.1:3001/": b""}
        assert await noted(store) == wanted
        assert await names(calls.listing(store, tombstones=True)) == []
        assert (await store.digests()).count == 0
        assert await found(store, "scrub") is None

    async def test_a_sound_store_is_writable_and_has_no_problems(self, store: BlobStore) -> None:
        condition = await store.condition()
        assert condition.writable
        assert condition.reasons == []
        if condition.free is not None and condition.total is not None:
            assert 0 < condition.free <= condition.total

    async def test_a_store_may_be_closed_twice(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"x"))
        await store.aclose()
        await store.aclose()

    async def test_a_put_under_way_is_finished_by_closing(
        self, store: BlobStore, place: Place
    ) -> None:
        puts = [
            asyncio.ensure_future(
                calls.put(store, f"n{number}", Bytes(noise(100 * number, number)))
            )
            for number in range(20)
        ]
        await asyncio.sleep(0)
        await store.aclose()
        answers = await asyncio.gather(*puts, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all(isinstance(error, DolmenError) for error in refused), refused
        if not self.reopens:
            return
        again = await self.make_store(place)
        for number, answer in enumerate(answers):
            if not isinstance(answer, BaseException):
                assert (await again.stat(f"n{number}")).stamp == answer.stamp
                assert await content(again, f"n{number}") == noise(100 * number, number)
        await again.aclose()

    async def test_a_store_opened_again_holds_what_it_held(
        self, store: BlobStore, place: Place
    ) -> None:
        if not self.reopens:
            pytest.skip("this store forgets when it is closed")
        big = noise(min(5_000_000, store.capabilities.largest))
        await fill(store, crowd()[:60], deleted=4)
        await calls.put(store, "big", streamed(big, (100_000,)), stamp=at(1), meta=META)
        await calls.put(store, "removed", Bytes(b"gone"), stamp=at(1))
        assert await calls.remove(store, "removed", if_stamp=at(1))
        await store.note("scrub", b"done")
        plain = await calls.put(store, "plain", Bytes(b"plain"))
        again = await calls.put(store, "plain", Bytes(b"plain"), stamp=plain.stamp + 5, meta=META)
        before = [info async for info in calls.listing(store, tombstones=True)]
        digests = await store.digests()
        for _ in range(2):
            await store.aclose()
            store = await self.make_store(place)
            assert [info async for info in calls.listing(store, tombstones=True)] == before
            assert await store.digests() == digests == await recomputed(store)
            assert await noted(store) == {"scrub": b"done"}
            assert await content(store, "big") == big
        # A clock that was set back meanwhile gives no stamp below the current one.
        assert (await calls.put(store, "plain", Bytes(b"plain"))).stamp > again.stamp
        await store.aclose()
