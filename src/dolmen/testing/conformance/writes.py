"""Writes and removals: what they answer, and what is current after them."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from dolmen import metadata
from dolmen.errors import (
    BadContent,
    Conflict,
    DolmenError,
    InvalidName,
    NotFound,
    Outdated,
    TooLarge,
)
from dolmen.names import checksum_of, chunk_name
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.stamps import MAX_STAMP
from dolmen.store import NO_CHECKSUM, BlobInfo, BlobStore, Outcome, Put, Remove, Write
from dolmen.stores.epoch import Seen, seen_in, tell
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    OTHER_META,
    at,
    content,
    found,
    info_of,
    left_by,
    names,
    recomputed,
    same,
    streamed,
    with_stream,
)
from dolmen.testing.conformance.setting import Place, Suite

BAD_NAMES = ["", ".a", "-a", "_a", "..", "a/b", "a b", "a\n", "a\0", "ä", "a\udcff", "x" * 129]
GOOD_NAMES = ["a", "A", "0", "a..b", "Z-._", "x" * 128, "chunk" + "0" * 63]
FULL_META = metadata.encode([(b"a", bytes(metadata.METADATA_MAX - 4))])
OVERFULL_META = (
    b"\1"
    + (metadata.METADATA_MAX - 3).to_bytes(2, "little")
    + b"a"
    + bytes(metadata.METADATA_MAX - 3)
)
CREATED, UNCHANGED, SUPERSEDED = Outcome.CREATED, Outcome.UNCHANGED, Outcome.SUPERSEDED
BLOB, MANIFEST = Kind.BLOB, Kind.MANIFEST
EDGES = [0, 1, 1 << 53, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, MAX_STAMP - 1, MAX_STAMP]
Steps = list[tuple[Write, Outcome | type[DolmenError]]]


def put(data: bytes, ms: int, meta: bytes = b"", kind: Kind = BLOB, name: str = "name") -> Write:
    """A put of these bytes at this moment."""
    return Write(name, Bytes(data), kind, meta, at(ms))


def delete(ms: int, name: str = "name") -> Write:
    """A delete at this moment."""
    return Write.tombstone(name, stamp=at(ms))


def touch(data: bytes, ms: int, meta: bytes = b"") -> Write:
    """A touch of these bytes at this moment."""
    return Write.touch("name", stamp=at(ms), checksum=checksum_of(data), metadata=meta)


def scenarios(one: bytes, two: bytes) -> dict[str, Steps]:
    """What the writes of one name answer, one after the other, on contents of some size."""
    mine = one + two
    chunk = chunk_name(mine)
    return {
        "an identical put is a write": [
            (put(one, 1, META), CREATED),
            (put(one, 1, META), UNCHANGED),
            (put(one, 2), UNCHANGED),
            (put(one, 3, FULL_META), UNCHANGED),
            (delete(2), SUPERSEDED),
            (put(one, 2), SUPERSEDED),
            (put(two, 2), SUPERSEDED),
        ],
        "a blob and a manifest replace one another": [
            (put(one, 1), CREATED),
            (put(one, 1, kind=MANIFEST), CREATED),
            (put(one, 1), SUPERSEDED),
            (put(two, 2), CREATED),
            (put(two, 3, META, MANIFEST), CREATED),
            (put(one, 4), CREATED),
        ],
        "the newer of delete and put is current": [
            (delete(5), CREATED),
            (delete(5), UNCHANGED),
            (delete(4), SUPERSEDED),
            (put(one, 4), SUPERSEDED),
            (put(one, 5), SUPERSEDED),
            (put(one, 6), CREATED),
            (delete(5), SUPERSEDED),
            (delete(6), CREATED),
            (delete(7), CREATED),
            (put(two, 8), CREATED),
        ],
        "a touch raises stamp and metadata and keeps the bytes": [
            (put(one, 1), CREATED),
            (touch(one, 2, META), UNCHANGED),
            (touch(one, 2, META), UNCHANGED),
            (touch(one, 1, OTHER_META), SUPERSEDED),
            (touch(one, 3), UNCHANGED),
            (touch(one, 3, META), UNCHANGED),  # none has the lowest hash there is
            (touch(one, 3), SUPERSEDED),
            (put(two, 4, kind=MANIFEST), CREATED),
            (touch(two, 5, META), UNCHANGED),
        ],
        "a touch finds only the live blob of its checksum": [
            (touch(one, 1), NotFound),
            (put(two, 1), CREATED),
            (touch(one, 2), NotFound),
            (delete(2), CREATED),
            (touch(two, 3), NotFound),
            (replace(touch(two, 3), checksum=NO_CHECKSUM), NotFound),
        ],
        "stamps differ by the last of 64 bits": [
            *((replace(put(one + b"%d" % stamp, 0), stamp=stamp), CREATED) for stamp in EDGES),
            *((replace(put(two, 0), stamp=stamp), SUPERSEDED) for stamp in EDGES[:-1]),
        ],
        "a chunk's name takes only its own content": [
            (put(two, 1, name=chunk), BadContent),
            (put(mine, 1, kind=MANIFEST, name=chunk), BadContent),
            (put(mine, 1, name=chunk), CREATED),
            (put(two, 2, name=chunk), BadContent),
            (put(mine, 2, kind=MANIFEST, name=chunk), BadContent),
        ],
        "a write of another form changes nothing": [
            *((wrong, error) for wrong, error in _malformed(one)),
            (put(one, 1), CREATED),
            *((wrong, error) for wrong, error in _malformed(one)),
        ],
    }  # fmt: skip


def _malformed(one: bytes) -> Steps:
    return [
        *((replace(put(one, 2), stamp=stamp), InvalidName) for stamp in (-1, MAX_STAMP + 1)),
        *((replace(delete(2), stamp=stamp), InvalidName) for stamp in (-1, 0, MAX_STAMP + 1)),
        *((make(one, 2, b"x"), InvalidName) for make in (put, touch)),
        *((make(one, 2, META[:-1]), InvalidName) for make in (put, touch)),
        *((make(one, 2, OVERFULL_META), TooLarge) for make in (put, touch)),
        (replace(put(one, 2), checksum=checksum_of(b"other")), BadContent),
        (replace(put(b"", 2), checksum=checksum_of(b"other")), BadContent),
        (replace(delete(2), metadata=META), BadContent),
        (replace(delete(2), payload=Bytes(b"data")), BadContent),
        (replace(put(one, 2), kind=Kind.REMOVAL), BadContent),
    ]


RIVALS = [
    put(b"one", 5),
    put(b"one", 5, META),
    put(b"two", 5),
    put(b"one", 5, kind=MANIFEST),
    delete(5),
    put(b"one", 4),
    put(b"one", 6, OTHER_META),
    delete(6),
]
"""Writes that meet under one name."""


class Writes(Suite):
    """Writes and removals."""

    @pytest.mark.parametrize("scenario", scenarios(b"", b""))
    async def test_writes_of_a_name(self, store: BlobStore, scenario: str) -> None:
        for form, times, stream in (("a", 1, False), ("b", 1, True), ("c", 30_000, True)):
            current: BlobInfo | None = None
            data = b""
            for write, expected in scenarios(b"one" * times, form.encode() * times)[scenario]:
                if write.name == "name":
                    write = replace(write, name=form)
                sent = with_stream(write) if stream else write
                if isinstance(expected, type):
                    with pytest.raises(expected):
                        await store.write(sent)
                else:
                    assert write.stamp is not None
                    if expected is not SUPERSEDED and write.kind == Kind.TOUCH:
                        assert current is not None
                        current = replace(current, stamp=write.stamp, metadata=write.metadata)
                    elif expected is not SUPERSEDED:
                        current, data = left_by(write), bytes(write.payload.whole or b"")
                    assert current is not None
                    assert await store.write(sent) == Put(expected, current.stamp), write
                if current is None:
                    assert await found(store, write.name) is None, write
                    continue
                assert same(await found(store, write.name), current), write
                if current.kind != Kind.TOMBSTONE:
                    assert same((await store.get(write.name)).info, current)
                    assert await content(store, write.name) == data
        assert await store.digests() == await recomputed(store)

    async def test_every_good_name_holds_its_own_blob(self, store: BlobStore) -> None:
        wanted = {}
        for name in GOOD_NAMES:
            put = await calls.put(store, name, Bytes(name.encode()), meta=META)
            assert put.outcome is CREATED
            wanted[name] = info_of(name, name.encode(), stamp=put.stamp, meta=META)
        for name in GOOD_NAMES:
            assert same(await store.stat(name), wanted[name])
            assert await content(store, name) == name.encode()
        assert sorted(await names(store.list())) == sorted(GOOD_NAMES)

    async def test_every_method_refuses_a_name_of_another_form(self, store: BlobStore) -> None:
        for name in BAD_NAMES:
            refused: list[Callable[[str], Awaitable[object]]] = [
                lambda name: calls.put(store, name, Bytes(b"x")),
                lambda name: calls.put(store, name, streamed(b"x" * 100_000), stamp=at(1)),
                store.get,
                store.stat,
                lambda name: calls.touch(store, name, stamp=at(1), checksum=NO_CHECKSUM),
                lambda name: calls.delete(store, name, stamp=at(1)),
                lambda name: calls.delete(store, name),
                lambda name: calls.remove(store, name, if_stamp=at(1)),
            ]
            for call in refused:
                with pytest.raises(InvalidName):
                    await call(name)

    async def test_a_plain_put_of_other_content_is_a_conflict(self, store: BlobStore) -> None:
        first = await calls.put(store, "name", Bytes(b"one"), meta=META)
        if not store.capabilities.conflicts:
            pytest.skip("this store lets the newer stamp win")
        for other in (Bytes(b"two"), Bytes(b""), streamed(b"two" * 50_000)):
            with pytest.raises(Conflict):
                await calls.put(store, "name", other)
        with pytest.raises(Conflict):
            await calls.put(store, "name", Bytes(b"one"), kind=MANIFEST)
        assert same(await store.stat("name"), info_of("name", b"one", stamp=first.stamp, meta=META))
        assert await content(store, "name") == b"one"

    async def test_a_plain_write_is_stamped_above_the_current_stamp(
        self, store: BlobStore, place: Place
    ) -> None:
        ahead = (place.time.wall() + 1_800_000) << 16  # half an hour: clocks may differ so much
        await calls.put(store, "ahead", Bytes(b"one"), stamp=ahead)
        for name, stamp in (("name", 0), ("ahead", ahead)):
            for write, outcome in (
                (Write.tombstone(name), CREATED),
                (Write(name, Bytes(b"one")), CREATED),
                (Write(name, Bytes(b"one"), metadata=META), UNCHANGED),
                (Write(name, Bytes(b"one")), UNCHANGED),
                (Write.tombstone(name), CREATED),
                (Write.tombstone(name), CREATED),
                (Write(name, Bytes(b"two"), MANIFEST, META), CREATED),
            ):
                put = await store.write(write)
                assert put.outcome is outcome
                assert put.stamp > stamp
                assert same(await found(store, name), left_by(write, stamp=put.stamp))
                stamp = put.stamp

    async def test_a_name_written_by_a_clock_years_ahead_can_still_be_written(
        self, store: BlobStore, place: Place
    ) -> None:
        ahead = (place.time.wall() + 10 * 365 * 86_400_000) << 16
        await calls.put(store, "blob", Bytes(b"one"), stamp=ahead)
        await calls.delete(store, "deleted", stamp=ahead)
        again = await calls.put(store, "blob", Bytes(b"one"), meta=META)
        assert again == (UNCHANGED, ahead + 1)
        assert await calls.delete(store, "blob") == (CREATED, ahead + 2)
        assert await calls.put(store, "deleted", Bytes(b"one")) == (CREATED, ahead + 1)
        # The clock itself does not follow: other blobs get stamps of now.
        assert (await calls.put(store, "another", Bytes(b"two"))).stamp < ahead

    async def test_a_write_or_touch_renews_the_time_of_arrival(
        self, store: BlobStore, place: Place
    ) -> None:
        await store.write(put(b"x", 2, META))
        await calls.delete(store, "deleted", stamp=at(2))
        for write, renews in (
            (put(b"y", 1), False),
            (touch(b"x", 1, META), False),
            (touch(b"x", 2, META), True),
            (put(b"x", 2, META), True),
            (touch(b"x", 3), True),
            (put(b"x", 4), True),
            (Write("name", Bytes(b"x")), True),
        ):
            before = (await store.stat("name")).arrived
            place.time.advance(3600)
            await store.write(write)
            info = await store.stat("name")
            assert info.arrived == (int(place.time.now()) if renews else before), write
        assert not await calls.remove(store, "name", if_stamp=info.stamp, min_age=3600)
        assert await calls.remove(store, "deleted", if_stamp=at(2), min_age=3600)
        place.time.advance(3600)
        assert await calls.remove(store, "name", if_stamp=info.stamp, min_age=3600)

    async def test_a_removed_copy_leaves_nothing(self, store: BlobStore) -> None:
        await calls.put(store, "beside", Bytes(b"beside"), stamp=at(5))
        for write in (put(b"one", 5), delete(5)):
            await store.write(write)
            assert await calls.remove(store, "name", if_stamp=at(5))
            with pytest.raises(NotFound) as caught:
                await store.get("name")
            assert caught.value.stamp == 0
            assert await names(calls.listing(store, tombstones=True)) == ["beside"]
            assert await store.digests() == await recomputed(store)
            assert not await calls.remove(store, "name", if_stamp=at(5))
        # Nothing was deleted: an older write may come again.
        assert await store.write(put(b"old", 1)) == (CREATED, at(1))
        assert await content(store, "name") == b"old"

    async def test_only_a_copy_of_that_stamp_and_age_is_removed(self, store: BlobStore) -> None:
        for write in (put(b"one", 5), put(b"one", 6), touch(b"one", 7), delete(8)):
            current = (await store.write(write)).stamp
            for stamp in (0, at(4), at(5), at(6), at(7), current - 1, current + 1):
                if stamp != current:
                    assert not await calls.remove(store, "name", if_stamp=stamp)
            assert not await calls.remove(store, "name", if_stamp=current, min_age=3600)
            left = await found(store, "name")
            assert left is not None
            assert left.stamp == current
        for stamp in (0, at(8)):
            assert not await calls.remove(store, "absent", if_stamp=stamp)
        assert await calls.remove(store, "name", if_stamp=at(8))

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
