"""Reads: whatever happens to the bytes on the disk, wrong ones are never served."""

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest

from dolmen.errors import Corrupt, Unavailable
from dolmen.payload import Bytes
from dolmen.stores.volume import VolumeStore, open_volume, reads
from dolmen.stores.volume.disk import Disk

SIZES = {"empty": 0, "one": 1, "small": 1000, "block": 65_536, "two": 65_537, "large": 300_001}


class Waiting(Disk):
    """A file system that knows no reads from the page cache alone, as tmpfs."""

    def read_cached(self, fd: int, room: bytearray | memoryview, offset: int) -> None:
        return None


def contents() -> dict[str, bytes]:
    rng = random.Random(1)
    return {name: rng.randbytes(size) for name, size in SIZES.items()}


async def filled(path: Path, disk: Disk | None = None) -> VolumeStore:
    store = await open_volume(str(path), disk=disk, segment_size=1 << 20)
    for name, data in contents().items():
        await store.put(name, Bytes(data))
    return store


async def read(store: VolumeStore, name: str, byte_range: tuple[int, int] | None = None) -> bytes:
    payload = (await store.get(name, byte_range=byte_range)).payload
    return b"".join([bytes(piece) async for piece in payload])


def segments(path: Path) -> list[Path]:
    return sorted(path.rglob("*.seg"))


RANGES = [None, (0, 1), (999, 1000), (65_535, 65_537), (100, 300_000), (5, 5), (7, 1 << 40)]


@pytest.mark.parametrize("disk", [Disk, Waiting])
async def test_every_range_is_that_of_the_content(tmp_path, disk):
    store = await filled(tmp_path / "v", disk())
    for name, data in contents().items():
        for byte_range in RANGES:
            start, stop = byte_range or (0, len(data))
            assert await read(store, name, byte_range) == data[start:stop]
    await store.aclose()


@pytest.mark.parametrize("disk", [Disk, Waiting])
async def test_a_flipped_bit_anywhere_is_found_and_never_served(tmp_path, disk):
    store = await filled(tmp_path / "v", disk())
    (segment,) = segments(tmp_path / "v")
    good = segment.read_bytes()
    store._reader._failed = lambda *_: None  # read it again and again
    rng = random.Random(2)
    for name, data in contents().items():
        entry = store._live(name)
        end = entry.offset + entry.record_size(name.encode())
        places = {rng.randrange(entry.offset, end) for _ in range(60)}
        for at in places | {entry.offset, entry.offset + entry.data_start(name.encode()), end - 1}:
            with segment.open("r+b") as file:
                file.seek(at)
                file.write(bytes([good[at] ^ 1 << rng.randrange(8)]))
            for byte_range in RANGES:
                start, stop = byte_range or (0, len(data))
                try:
                    assert await read(store, name, byte_range) == data[start:stop]
                except Corrupt:
                    continue
                # A flip in what was not asked for, or in the header, harms nobody here.
                begin = entry.offset + entry.data_start(name.encode())
                first = begin + start // 65_536 * 65_536
                last = begin + (stop + 65_535) // 65_536 * 65_536
                hit = first <= at < min(last, begin + len(data)) and start < min(stop, len(data))
                assert not hit, f"{name}, byte {at}"
            with segment.open("r+b") as file:
                file.seek(at)
                file.write(good[at : at + 1])
    await store.aclose()


async def test_a_segment_cut_off_anywhere_never_gives_too_few_bytes(tmp_path):
    store = await filled(tmp_path / "v")
    (segment,) = segments(tmp_path / "v")
    store._reader._failed = lambda *_: None
    name, data = "small", contents()["small"]
    entry = store._live(name)
    for end in range(entry.offset + entry.record_size(name.encode()) - 1, entry.offset, -1):
        os.truncate(segment, end)
        with pytest.raises(Corrupt):
            await read(store, name)
        with pytest.raises(Corrupt):
            await read(store, name, (len(data) - 1, len(data)))
    await store.aclose()


async def test_a_record_of_another_name_in_its_place_is_not_served(tmp_path):
    store = await open_volume(str(tmp_path / "v"))
    for name in ("a", "b"):
        await store.put(name, Bytes(name.encode() * 10))
    (segment,) = segments(tmp_path / "v")
    a, b = store._live("a"), store._live("b")
    held = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(a.offset)
        file.write(held[b.offset : b.offset + b.record_size(b"b")])
    with pytest.raises(Corrupt):
        await store.get("a")
    await store.aclose()


async def test_a_segment_that_is_gone_is_damage_and_leaves_the_lists(tmp_path):
    store = await filled(tmp_path / "v")
    await store.aclose()
    (segment,) = segments(tmp_path / "v")[:1]
    segment.rename(tmp_path / "elsewhere")
    store = await open_volume(str(tmp_path / "v"))
    for name in SIZES:
        with pytest.raises(Corrupt):
            await read(store, name)
    for _ in range(100):
        if not (await store.digests()).count:
            break
        await asyncio.sleep(0.01)
    assert [info async for info in store.list()] == []
    await store.aclose()


async def test_a_segment_that_is_sealed_meanwhile_is_read_where_it_lies_now(tmp_path):
    store = await open_volume(str(tmp_path / "v"), segment_size=1 << 20)
    data = os.urandom(900_000)
    for number in range(4):
        await store.put(f"n{number}", Bytes(data))
        entry = store._live(f"n{number}")
        store._files.close()
        payloads = [(await store.get(f"n{number}")).payload for _ in range(2)]
        await store.digests()  # merges, and seals what is finished
        assert b"".join([bytes(piece) async for piece in payloads[0]]) == data
        store._files.close()
        assert await read(store, f"n{number}") == data
        assert store._live(f"n{number}").segment == entry.segment
    assert segments(tmp_path / "v/sealed")
    await store.aclose()


async def test_a_payload_can_be_read_long_after_its_file_was_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(reads, "_OPEN_MAX", 2)
    store = await open_volume(str(tmp_path / "v"), segment_size=1 << 20)
    contents = {f"n{number}": os.urandom(1_100_000) for number in range(8)}
    for name, data in contents.items():
        await store.put(name, Bytes(data))
    payloads = {name: (await store.get(name)).payload for name in contents}
    for name, payload in payloads.items():
        assert b"".join([bytes(piece) async for piece in payload]) == contents[name]
    await store.aclose()


async def test_payloads_that_are_dropped_close_their_files(tmp_path, descriptors, monkeypatch):
    monkeypatch.setattr(reads, "_OPEN_MAX", 2)
    store = await open_volume(str(tmp_path / "v"), segment_size=1 << 20)
    for number in range(8):
        await store.put(f"n{number}", Bytes(os.urandom(1_100_000)))
    before = descriptors()
    payloads = [(await store.get(f"n{number}")).payload for number in range(8)]
    pieces = [payload.__aiter__() for payload in payloads]
    for piece in pieces:
        await anext(piece)
    assert descriptors() > before + 2
    for piece in pieces:
        await piece.aclose()
    del payloads, pieces, piece
    assert descriptors() <= before + 2
    await store.aclose()


async def test_a_payload_of_a_closed_volume_is_right_or_says_so(tmp_path):
    for disk in (Disk(), Waiting()):
        store = await filled(tmp_path / type(disk).__name__, disk)
        payload = (await store.get("large")).payload
        await store.aclose()
        with contextlib.suppress(Unavailable):
            assert b"".join([bytes(piece) async for piece in payload]) == contents()["large"]
