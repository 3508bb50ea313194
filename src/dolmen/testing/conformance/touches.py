"""Touches: stamp and metadata are raised, the bytes stay; and the time of arrival."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import pytest

from dolmen.errors import NotFound
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import BlobStore, Outcome, Write
from dolmen.testing import calls
from dolmen.testing.conformance.material import META, OTHER_META, at, content, info_of
from dolmen.testing.conformance.rivals import same
from dolmen.testing.conformance.setting import Place, Suite


class Touches(Suite):
    """Touches."""

    async def test_a_touch_raises_stamp_and_metadata_and_keeps_the_bytes(
        self, store: BlobStore
    ) -> None:
        data = b"content"
        checksum = checksum_of(data)
        for kind in (Kind.BLOB, Kind.MANIFEST):
            await calls.put(store, kind.name, Bytes(data), stamp=at(1), kind=kind)
            expected = [
                (at(2), META, (Outcome.UNCHANGED, at(2))),
                (at(2), META, (Outcome.UNCHANGED, at(2))),
                (at(1), OTHER_META, (Outcome.SUPERSEDED, at(2))),
                (at(3), b"", (Outcome.UNCHANGED, at(3))),
                (at(3), META, (Outcome.UNCHANGED, at(3))),  # none has the lowest hash there is
                (at(3), b"", (Outcome.SUPERSEDED, at(3))),
            ]
            for stamp, meta, answer in expected:
                assert answer == await calls.touch(
                    store, kind.name, stamp=stamp, checksum=checksum, meta=meta
                )
            wanted = info_of(kind.name, data, stamp=at(3), kind=kind, meta=META)
            assert same(await store.stat(kind.name), wanted)
            assert await content(store, kind.name) == data

    async def test_a_touch_finds_only_the_live_blob_of_that_checksum(
        self, store: BlobStore
    ) -> None:
        await calls.put(store, "other", Bytes(b"other"), stamp=at(1))
        await calls.put(store, "deleted", Bytes(b"content"), stamp=at(1))
        await calls.delete(store, "deleted", stamp=at(2))
        for name in ("absent", "other", "deleted"):
            with pytest.raises(NotFound):
                await calls.touch(
                    store, name, stamp=at(3), checksum=checksum_of(b"content"), meta=b""
                )
        with pytest.raises(NotFound):
            await calls.touch(store, "deleted", stamp=at(3), checksum=bytes(16), meta=b"")
        assert same(await store.stat("other"), info_of("other", b"other", stamp=at(1)))
        assert same(
            await calls.current(store, "deleted"),
            info_of("deleted", b"", stamp=at(2), kind=Kind.TOMBSTONE),
        )

    async def test_a_write_or_touch_renews_the_time_of_arrival(
        self, store: BlobStore, place: Place
    ) -> None:
        checksum = checksum_of(b"x")
        await calls.put(store, "name", Bytes(b"x"), stamp=at(2), meta=META)
        await calls.delete(store, "deleted", stamp=at(2))
        for write, renews in (
            (Write("name", Bytes(b"y"), stamp=at(1)), False),
            (Write.touch("name", stamp=at(1), checksum=checksum, metadata=META), False),
            (Write.touch("name", stamp=at(2), checksum=checksum, metadata=META), True),
            (Write("name", Bytes(b"x"), stamp=at(2), metadata=META), True),
            (Write.touch("name", stamp=at(3), checksum=checksum), True),
            (Write("name", Bytes(b"x"), stamp=at(4)), True),
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
