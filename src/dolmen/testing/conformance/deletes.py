"""Deletes leave tombstones; removals leave nothing."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import pytest

from dolmen.errors import InvalidName, NotFound, Outdated
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import BlobStore, Outcome, Remove
from dolmen.stores.epoch import Seen, seen_in, tell
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    at,
    content,
    info_of,
    names,
    recomputed,
    standing,
)
from dolmen.testing.conformance.rivals import same
from dolmen.testing.conformance.setting import Suite


async def assert_deleted(store: BlobStore, name: str, stamp: int) -> None:
    """A tombstone with this stamp stands, and everybody is told."""
    for call in (store.get, store.stat):
        with pytest.raises(NotFound) as caught:
            await call(name)
        assert caught.value.stamp == stamp
    tombstone = info_of(name, b"", stamp=stamp, kind=Kind.TOMBSTONE)
    assert same(await calls.current(store, name), tombstone)
    assert name not in await names(store.list())
    assert name in await names(calls.listing(store, tombstones=True))


class Deletes(Suite):
    """Deletes and removals."""

    async def test_a_deleted_blob_is_not_found_and_its_name_is_free(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"one"))
        await calls.delete(store, "name")
        with pytest.raises(NotFound):
            await store.get("name")
        assert await names(store.list()) == []
        assert (await calls.put(store, "name", Bytes(b"two"))).outcome is Outcome.CREATED
        assert await content(store, "name") == b"two"

    async def test_a_plain_delete_is_stamped_above_the_current_stamp(
        self, store: BlobStore
    ) -> None:
        put = await calls.put(store, "name", Bytes(b"one"))
        deleted = await calls.delete(store, "name")
        assert deleted.outcome is Outcome.CREATED
        assert deleted.stamp > put.stamp
        await assert_deleted(store, "name", deleted.stamp)
        again = await calls.put(store, "name", Bytes(b"two"))
        assert again.outcome is Outcome.CREATED
        assert again.stamp > deleted.stamp

    async def test_an_absent_name_gets_a_tombstone_too(self, store: BlobStore) -> None:
        assert await calls.delete(store, "stamped", stamp=at(1)) == (Outcome.CREATED, at(1))
        await assert_deleted(store, "stamped", at(1))
        plain = await calls.delete(store, "plain")
        assert plain.outcome is Outcome.CREATED
        await assert_deleted(store, "plain", plain.stamp)

    async def test_the_newer_of_delete_and_put_is_current(self, store: BlobStore) -> None:
        async def put(stamp: int) -> tuple[Outcome, int]:
            return await calls.put(store, "name", Bytes(b"one"), stamp=stamp)

        assert await calls.delete(store, "name", stamp=at(5)) == (Outcome.CREATED, at(5))
        assert await calls.delete(store, "name", stamp=at(5)) == (Outcome.UNCHANGED, at(5))
        assert await calls.delete(store, "name", stamp=at(4)) == (Outcome.SUPERSEDED, at(5))
        assert await put(at(4)) == (Outcome.SUPERSEDED, at(5))
        assert await put(at(5)) == (Outcome.SUPERSEDED, at(5)), "a tombstone wins a tie"
        await assert_deleted(store, "name", at(5))
        assert await put(at(5) + 1) == (Outcome.CREATED, at(5) + 1)
        assert await content(store, "name") == b"one"
        assert await calls.delete(store, "name", stamp=at(5)) == (Outcome.SUPERSEDED, at(5) + 1)
        assert await content(store, "name") == b"one"
        assert await calls.delete(store, "name", stamp=at(5) + 1) == (Outcome.CREATED, at(5) + 1)
        assert await calls.delete(store, "name", stamp=at(6)) == (Outcome.CREATED, at(6))
        await assert_deleted(store, "name", at(6))

    async def test_a_removed_blob_leaves_nothing(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"one"), stamp=at(5))
        await calls.put(store, "beside", Bytes(b"beside"), stamp=at(5))
        assert await calls.remove(store, "name", if_stamp=at(5))
        assert await standing(store, "name") is None
        with pytest.raises(NotFound) as caught:
            await store.get("name")
        assert caught.value.stamp == 0
        assert await names(calls.listing(store, tombstones=True)) == ["beside"]
        assert await store.digests() == await recomputed(store)
        assert not await calls.remove(store, "name", if_stamp=at(5))
        # Nothing was deleted: an older write may come again.
        assert await calls.put(store, "name", Bytes(b"old"), stamp=at(1)) == (
            Outcome.CREATED,
            at(1),
        )
        assert await content(store, "name") == b"old"

    async def test_only_the_stamp_named_is_removed(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"one"), stamp=at(5))
        for stamp in (0, at(5) - 1, at(5) + 1):
            assert not await calls.remove(store, "name", if_stamp=stamp)
        assert not await calls.remove(store, "absent", if_stamp=at(5))
        assert not await calls.remove(store, "absent", if_stamp=0)
        await calls.touch(store, "name", stamp=at(6), checksum=checksum_of(b"one"), meta=b"")
        assert not await calls.remove(store, "name", if_stamp=at(5))
        assert await content(store, "name") == b"one"
        assert await calls.remove(store, "name", if_stamp=at(6))

    async def test_a_delete_without_a_time_is_refused(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"one"), stamp=at(1))
        for name in ("name", "absent"):
            with pytest.raises(InvalidName):
                await calls.delete(store, name, stamp=0)
        assert await content(store, "name") == b"one"

    async def test_a_tombstone_can_be_removed(self, store: BlobStore) -> None:
        await calls.delete(store, "name", stamp=at(5))
        assert not await calls.remove(store, "name", if_stamp=at(4))
        assert await calls.remove(store, "name", if_stamp=at(5))
        assert await standing(store, "name") is None
        assert await names(calls.listing(store, tombstones=True)) == []
        assert (await store.digests()).count == 0

    async def test_what_arrived_lately_is_not_removed(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"one"), stamp=at(1))
        assert not await calls.remove(store, "name", if_stamp=at(1), min_age=3600)
        assert await content(store, "name") == b"one"

    async def test_many_are_removed_in_the_order_asked(self, store: BlobStore) -> None:
        for number in range(100):
            await calls.put(store, f"name-{number}", Bytes(b"%d" % number), stamp=at(1))
        removes = [Remove(f"name-{number}", at(1 + number % 2)) for number in range(99)]
        removes.append(Remove("absent", at(1)))
        removed = await store.remove_many(removes)
        assert list(removed) == [number % 2 == 0 for number in range(99)] + [False]
        left = {f"name-{number}" for number in range(100) if number % 2 or number == 99}
        assert set(await names(store.list())) == left
        assert not any(await store.remove_many([Remove(name, at(1)) for name in left], min_age=60))
        assert list(await store.remove_many([])) == []

    async def test_an_older_configuration_removes_nothing(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"one"), stamp=at(1))
        remove = [Remove("name", at(1))]
        assert seen_in(await store.notes()) == (0, "")
        await tell(store, Seen(7, "a"))
        assert seen_in(await store.notes()) == (7, "a")
        with pytest.raises(Outdated):
            await store.remove_many(remove, epoch=6)
        assert await content(store, "name") == b"one"
        assert list(await store.remove_many(remove, epoch=7)) == [True]
