"""Entries and answers: what goes in comes out, and what is cut or wrong never passes for whole."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.errors import Corrupt, DolmenError, Full, NotFound, OutcomeUnknown
from dolmen.record import Kind
from dolmen.stamps import MAX_STAMP
from dolmen.store import BlobInfo, Failed, Outcome, Put
from dolmen.stores.records import Mark
from dolmen.stores.wire import decode_answers, decode_entries, encode_answer, encode_entries
from dolmen.testing.conformance.material import each

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
METAS = st.sampled_from([b"", metadata.encode([(b"x-a", b"\x00\xff")])])
INFOS = st.builds(
    BlobInfo,
    NAMES,
    st.integers(0, 1 << 44),
    st.sampled_from([Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE]),
    st.integers(0, MAX_STAMP),
    st.binary(min_size=16, max_size=16),
    METAS,
    st.integers(0, 1 << 40),
)
ERRORS = st.builds(Full, st.text(max_size=50)) | st.builds(
    lambda text, stamp: NotFound(text, stamp=stamp), st.text(max_size=50), st.integers(0, MAX_STAMP)
)
ITEMS = st.lists(INFOS | st.builds(Failed, NAMES, ERRORS), max_size=12)


async def encoded(items: list[BlobInfo | Failed], limit: int | None = None) -> bytes:
    return b"".join([piece async for piece in encode_entries(each(items), limit, together=100)])


async def decoded(
    data: bytes, cuts: list[int]
) -> tuple[list[BlobInfo | tuple[object, ...]], str | None]:
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[start:stop] for start, stop in pairwise(borders)]
    *items, mark = [item async for item in decode_entries(each(pieces))]
    assert isinstance(mark, Mark)
    return [shown(item) for item in items], mark.word or None


def shown(item: BlobInfo | Failed) -> BlobInfo | tuple[object, ...]:
    if isinstance(item, BlobInfo):
        return item
    return item.name, type(item.error), str(item.error), getattr(item.error, "stamp", 0)


@given(ITEMS, st.lists(st.integers(0, 5_000), max_size=5))
async def test_entries_come_out_as_they_went_in_however_they_are_cut_up(items, cuts):
    assert await decoded(await encoded(items), cuts) == ([shown(item) for item in items], None)


@given(ITEMS.filter(len), st.integers(1, 12))
async def test_a_page_says_where_the_next_one_begins(items, limit):
    found, following = await decoded(await encoded(items, limit), [])
    assert found == [shown(item) for item in items[:limit]]
    assert following == (items[limit - 1].name if len(items) > limit else None)


@given(ITEMS, st.integers(0, 5_000))
async def test_entries_that_are_cut_off_never_pass_for_whole(items, cut):
    data = await encoded(items)
    with pytest.raises(Corrupt):
        await decoded(data[: cut % len(data)], [])
    with pytest.raises(Corrupt):
        await decoded(data + data, [])


@given(ITEMS.filter(len), st.integers(0, 1 << 20), st.integers(0, 7))
async def test_a_flipped_bit_in_an_entry_is_noticed(items, at, bit):
    data = bytearray(await encoded(items))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(Corrupt):
        await decoded(bytes(data), [])


ANSWERS = st.lists(
    st.builds(Put, st.sampled_from(Outcome), st.integers(0, MAX_STAMP))
    | st.builds(lambda error: Failed("", error), ERRORS),
    max_size=12,
)


@given(ANSWERS, st.integers(0, 5_000))
def test_answers_come_out_as_they_went_in_and_a_cut_is_noticed(answers, cut):
    def seen(answer: Put | Failed | DolmenError) -> object:
        return (
            answer
            if isinstance(answer, Put)
            else shown(answer if isinstance(answer, Failed) else Failed("", answer))
        )

    parts = [encode_answer(answer) for answer in answers]
    data = b"".join(parts)
    assert list(map(seen, decode_answers(data))) == list(map(seen, answers))
    if not data:
        return
    cut %= len(data)
    whole = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
    found: list[object] = []
    try:
        found.extend(map(seen, decode_answers(data[:cut])))
    except Corrupt:
        assert cut not in whole
    assert found == list(map(seen, answers))[: len(found)]


def test_an_error_nobody_knows_is_unavailable():
    data = encode_answer(Failed("", OutcomeUnknown("x"))).replace(
        b"OutcomeUnknown", b"NothingOfIt..."
    )
    (error,) = decode_answers(data)
    assert type(error).__name__ == "Unavailable"
