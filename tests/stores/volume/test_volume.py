"""The volume keeps the contract."""

from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest

from dolmen.payload import Bytes
from dolmen.stamps import Clock
from dolmen.store import Blob, BlobStore, Capabilities, Failed, Outcome, Write
from dolmen.stores.volume import Volume, open_volume
from dolmen.stores.volume.disk import Disk
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.conformance.material import each
from stores.volume.conftest import flip, place_of, put


class TestVolume(Conformance):
    model_examples = 200

    async def make_store(self, place: Place) -> BlobStore:
        return await open_volume(
            str(place.path),
            clock=Clock(place.time.wall),
            now=place.time.now,
            segment_size=1 << 20,
        )

    async def damage(self, store: BlobStore, place: Place, name: str) -> None:
        assert isinstance(store, Volume)
        path, at = place_of(store, name)
        flip(path, at + (await store.stat(name)).size // 2)


def test_what_it_promises() -> None:
    assert Volume.capabilities == Capabilities(
        durable=True, largest=1 << 44, digests=True, ordered=True, conflicts=True
    )


async def test_what_the_page_cache_lacks_is_fetched_for_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{number}" for number in range(40)]
    asked: list[int] = []
    now = Disk.read_record

    def cached(fd: int, offset: int, *rest: Any) -> bytes | memoryview | Literal[False] | None:
        return now(fd, offset, *rest) if offset in asked else None

    def will_need(_self: Disk, _fd: int, _length: int, offset: int) -> None:
        asked.append(offset)

    async with aclosing(await open_volume(str(tmp_path / "volume"))) as store:
        for name in names:
            await put(store, name, name.encode())
        monkeypatch.setattr(Disk, "read_record", staticmethod(cached))
        monkeypatch.setattr(Disk, "will_need", will_need)
        answers = [answer async for answer in store.get_many([*names, "absent"])]
    blobs = [answer for answer in answers if isinstance(answer, Blob)]
    assert [bytes(blob.payload.whole or b"") for blob in blobs] == [n.encode() for n in names]
    assert isinstance(answers[-1], Failed)
    assert len(asked) == len(set(asked)) == len(names)


async def test_writes_of_a_bulk_that_was_given_up_leave_the_volume_sound(tmp_path: Path) -> None:
    async with aclosing(await open_volume(str(tmp_path / "volume"))) as store:
        writes = each([Write(f"n{at}", Bytes(b"x"), stamp=at + 1) for at in range(2_000)])
        async with aclosing(store.write_many(writes)) as answers:
            assert (await anext(answers)).stamp == 1
        assert (await put(store, "n0", b"x", 9)).outcome is Outcome.UNCHANGED
        listed = {info.name async for info in store.list()}
        assert {f"n{at}" for at in range(128)} <= listed
