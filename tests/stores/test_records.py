"""Streams of records: what goes in comes out, and what is damaged on the way never does."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.errors import BadContent, Corrupt, NotFound, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob, BlobInfo, Failed
from dolmen.stores import record_reader, records
from dolmen.testing.conformance.material import each, streamed

KINDS = st.sampled_from([Kind.BLOB, Kind.MANIFEST])
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([65_535, 65_536, 65_537, 200_000]))


def blob(number: int, size: int, kind: int = Kind.BLOB, meta: bytes = b"") -> Blob:
    data = random.Random(number).randbytes(size)
    info = BlobInfo(f"name-{number}", size, kind, number + 1, checksum_of(data), meta)
    return Blob(info, Bytes(data))


async def encoded(blobs: list[Blob | Failed]) -> bytes:
    return b"".join([bytes(piece) async for piece in records.encode(each(blobs))])


async def decoded(data: bytes, cuts: list[int]) -> list[tuple[BlobInfo, bytes]]:
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [memoryview(data)[start:stop] for start, stop in pairwise(borders)]
    found = []
    async for one in record_reader.decode(each(pieces)):
        assert isinstance(one, Blob)
        payload = b"".join([bytes(piece) async for piece in one.payload])
        found.append((one.info, payload))
    return found


@given(
    st.lists(st.tuples(SIZES, KINDS, st.booleans()), max_size=8),
    st.lists(st.integers(0, 1 << 30), max_size=12),
)
async def test_blobs_come_out_as_they_went_in_however_the_stream_is_cut_up(wanted, cuts) -> None:
    meta = metadata.encode([(b"x-mime-type", b"text/plain")])
    blobs = [
        blob(number, size, kind, meta if with_meta else b"")
        for number, (size, kind, with_meta) in enumerate(wanted)
    ]
    data = await encoded([*blobs])
    streams = [Blob(one.info, streamed(bytes(one.payload.whole or b""))) for one in blobs]
    assert await encoded([*streams]) == data
    assert await decoded(data, cuts) == [(one.info, one.payload.whole) for one in blobs]


async def test_a_large_blob_is_a_stream_between_others() -> None:
    blobs = [blob(1, 10), blob(2, records.WHOLE + 100_001), blob(3, 20)]
    data = await encoded([*blobs])
    cuts = list(range(0, len(data), 99_991))
    assert await decoded(data, cuts) == [(one.info, one.payload.whole) for one in blobs]


async def test_a_large_blob_left_unread_is_passed_over() -> None:
    data = await encoded([blob(1, records.WHOLE + 1), blob(2, 20)])
    found = [one async for one in record_reader.decode(each([data]))]
    assert [one.info.name for one in found if isinstance(one, Blob)] == ["name-1", "name-2"]


@given(st.integers(0, 1 << 30), st.lists(st.integers(0, 1 << 30), max_size=4))
async def test_a_stream_cut_off_anywhere_says_so(at, cuts) -> None:
    whole = await encoded([blob(1, 100), blob(2, 70_000), blob(3, 0)])
    borders = {0, len(await encoded([blob(1, 100)]))}
    borders |= {len(await encoded([blob(1, 100), blob(2, 70_000)])), len(whole)}
    stop = at % len(whole)
    if stop in borders:
        assert len(await decoded(whole[:stop], cuts)) == sorted(borders).index(stop)
    else:
        with pytest.raises(BadContent):
            await decoded(whole[:stop], cuts)


@given(st.integers(0, 1 << 30), st.integers(0, 7), st.lists(st.integers(0, 1 << 30), max_size=4))
async def test_a_flipped_bit_anywhere_is_noticed(at, bit, cuts) -> None:
    data = bytearray(await encoded([blob(1, 100), blob(2, 66_000)]))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(BadContent):
        await decoded(bytes(data), cuts)


async def test_a_flipped_bit_in_a_large_blob_is_noticed_before_its_end() -> None:
    data = bytearray(await encoded([blob(1, records.WHOLE + 100_000)]))
    data[-50_000] ^= 1
    with pytest.raises(BadContent):
        await decoded(bytes(data), [100_000])


@pytest.mark.parametrize(
    "error", [NotFound("gone", stamp=7), NotFound("never"), Corrupt("bad"), Unavailable("away")]
)
async def test_a_refusal_travels_as_the_error_it_is(error) -> None:
    data = await encoded([Failed("name", error), blob(1, 5)])
    failed, after = [one async for one in record_reader.decode(each([data]))]
    assert isinstance(failed, Failed)
    assert (failed.name, type(failed.error), str(failed.error)) == ("name", type(error), str(error))
    assert getattr(failed.error, "stamp", 0) == getattr(error, "stamp", 0)
    assert isinstance(after, Blob)
