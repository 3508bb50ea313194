"""What is written to an archive comes out of it again, and damage is told, never passed on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.errors import Corrupt
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS, Damage, Mark, Reader
from dolmen.store import Blob, BlobInfo, Failed
from replication.archives import OWNER, blob, pieces, read, written

FACTS = {"source": "somewhere", "horizon": "0" * 16}
META = metadata.encode([(b"x-file-name", b"a.txt")])
GOLDEN = Path(__file__).parent.parent / "golden" / "small.archive"
TOMBSTONE = Blob(BlobInfo("gone", 0, Kind.TOMBSTONE, 77, bytes(16)), Bytes(b""))


def items():
    return [
        (EXPORT, FACTS),
        blob(1, 10),
        TOMBSTONE,
        blob(2, 70_000, meta=META),
        Failed("damaged", Corrupt("its data fails its checksum")),
        blob(3, 0),
        (MANIFESTS,),
        blob(4, 90, Kind.MANIFEST),
        (END,),
    ]


def seen(found: list[object]) -> list[object]:
    """What tells one item from another."""
    told: list[object] = []
    for item in found:
        if isinstance(item, Blob):
            told.append((item.info, bytes(item.payload.whole)))
        elif isinstance(item, Failed):
            told.append((item.name, type(item.error), str(item.error)))
        else:
            told.append(item if isinstance(item, Damage) else tuple(item))
    return told


def wanted() -> list[object]:
    return seen([Mark(*(*item, {})[:2]) if isinstance(item, tuple) else item for item in items()])


@pytest.mark.parametrize("step", [1, 7, 1_000, 1 << 20])
async def test_what_goes_in_comes_out(step):
    data = await written(*items())
    found, reader = await read(data, step)
    assert seen(found) == wanted()
    assert (reader.owner, reader.records, reader.end) == (OWNER, 9, len(data))


async def test_a_large_blob_comes_as_a_stream():
    large = blob(9, 5_000_000)
    data = await written((EXPORT, FACTS), large, blob(1, 10), (END,))
    found, _ = await read(data)
    assert seen(found)[1:3] == seen([large, blob(1, 10)])


async def test_nobody_has_to_read_a_large_blob():
    data = await written((EXPORT, FACTS), blob(9, 5_000_000), blob(1, 10), (END,))
    found = [item async for item in Reader(pieces(data))]
    assert [type(item) for item in found] == [Mark, Blob, Blob, Mark]


async def test_wherever_it_is_cut_what_came_before_is_right_and_the_cut_is_told():
    data = await written(*items())
    whole = wanted()
    ends = [len(await written(*items()[: count + 1])) for count in range(len(whole))]
    for size in range(len(data)):
        found, reader = await read(data[:size])
        at = sum(end <= size for end in ends)
        assert reader.end == (ends[at - 1] if at else 0)
        if size == reader.end:
            assert seen(found) == whole[:at]
        else:
            assert seen(found[:-1]) == whole[:at]
            assert found[-1].records is None
            assert found[-1].at + found[-1].size == size


@given(st.integers(0, 1 << 30), st.integers(1, 3))
async def test_a_damaged_byte_costs_its_record_and_is_told(seed, damages):
    data = bytearray(await written(*items()))
    rng = random.Random(seed)
    for _ in range(damages):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    found, _ = await read(bytes(data))
    left = wanted()
    for told in seen([item for item in found if not isinstance(item, Damage)]):
        assert told in left
        left = left[left.index(told) + 1 :]
    damaged = [item for item in found if isinstance(item, Damage)]
    assert damaged
    sound = len(found) - len(damaged)
    if damaged[-1].records is not None:
        assert sound + sum(each.records for each in damaged) == len(wanted())


async def test_a_large_record_that_is_damaged_is_told_and_passed_over():
    data = bytearray(await written((EXPORT, FACTS), blob(9, 5_000_000), blob(1, 10), (END,)))
    data[3_000_000] ^= 1
    found, _ = await read(bytes(data))
    assert isinstance(found[1], Damage)
    assert (found[1].name, found[1].records) == ("name-9", 1)
    assert seen(found)[2:] == [*seen([blob(1, 10)]), (END, {})]


async def test_records_that_were_cut_out_are_missed():
    data = await written(*items())
    ends = [len(await written(*items()[:count])) for count in range(len(items()) + 1)]
    found, _ = await read(data[: ends[2]] + data[ends[4] :])
    assert [(each.at, each.size, each.records) for each in found if isinstance(each, Damage)] == [
        (ends[2], 0, 2)
    ]


async def test_records_inside_a_blob_are_not_taken_for_records():
    inner = await written((EXPORT, FACTS), blob(5, 10), (END,), owner=bytes(16))
    outer = Blob(BlobInfo("inner", len(inner), Kind.BLOB, 4, b"\0" * 16), Bytes(inner))
    data = bytearray(await written((EXPORT, FACTS), outer, blob(1, 10), (END,)))
    start = len(await written((EXPORT, FACTS)))
    data[start] ^= 1
    found, _ = await read(bytes(data))
    assert [item.info.name for item in found if isinstance(item, Blob)] == ["name-1"]
    assert found[1].records == 1


@pytest.mark.parametrize("data", [b"", b"x", b"dlmn", bytes(1_000), b"dlmn" * 1_000])
async def test_what_is_none_holds_nothing(data):
    found, reader = await read(data)
    assert not reader.owner
    assert [type(item) for item in found] == ([Damage] if data else [])


async def test_the_format_stays():
    assert await written(*items()) == GOLDEN.read_bytes()
    found, _ = await read(GOLDEN.read_bytes())
    assert seen(found) == wanted()
