"""The store itself: its notes, its condition, closing it and opening it again."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import re

import pytest

from dolmen.errors import DolmenError, InvalidName
from dolmen.payload import Bytes
from dolmen.store import IDENTITY, BlobStore
from dolmen.testing import calls
from dolmen.testing.conformance.listings import fill
from dolmen.testing.conformance.material import (
    META,
    at,
    content,
    crowd,
    found,
    names,
    noise,
    recomputed,
    streamed,
)
from dolmen.testing.conformance.setting import Place, Suite


async def noted(store: BlobStore) -> dict[str, bytes]:
    """Every note but the identity."""
    return {key: value for key, value in (await store.notes()).items() if key != IDENTITY}


class Upkeep(Suite):
    """Notes, condition, closing, opening again."""

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
