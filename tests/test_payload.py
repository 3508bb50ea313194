import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen.errors import BadContent, Unavailable
from dolmen.payload import Bytes, Stream, read_whole, to_the_end

piece_lists = st.lists(st.binary(max_size=20), max_size=8)


def stream(pieces, size=None, **options):
    async def opened():
        for piece in pieces:
            yield piece

    return Stream(sum(map(len, pieces)) if size is None else size, opened, **options)


async def pieces_of(payload):
    return [bytes(piece) async for piece in payload]


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("data", [b"", b"content"])
async def test_bytes_read_again_and_again(buffer, data):
    payload = Bytes(buffer(data))
    assert payload.size == len(data)
    for _ in range(2):
        assert b"".join(await pieces_of(payload)) == data
        assert b"" not in await pieces_of(payload)
    assert bytes(await read_whole(payload)) == data


@given(piece_lists)
async def test_a_stream_gives_its_pieces_but_no_empty_ones(pieces):
    payload = stream(pieces)
    for _ in range(2):
        assert await pieces_of(payload) == [piece for piece in pieces if piece]
    assert bytes(await read_whole(payload)) == b"".join(pieces)


@given(piece_lists, st.integers(-40, 40).filter(bool))
async def test_a_stream_of_another_length_than_announced_is_refused(pieces, wrong):
    size = max(0, sum(map(len, pieces)) + wrong)
    if size == sum(map(len, pieces)):
        return
    got = []

    async def read():
        async for piece in stream(pieces, size):
            got.append(piece)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(BadContent, match=f"{size} bytes were announced"):
        await read()
    assert len(b"".join(got)) <= size, "never more than was announced"


async def test_a_stream_that_can_be_read_once_says_so_the_second_time():
    payload = stream([b"content"], rereadable=False)
    assert await pieces_of(payload) == [b"content"]
    with pytest.raises(BadContent, match="only once"):
        await pieces_of(payload)


async def test_a_stream_that_fails_lets_its_error_go():
    async def opened():
        yield b"half"
        raise Unavailable("the source went away")

    payload = Stream(8, opened)
    with pytest.raises(Unavailable):
        await read_whole(payload)


@pytest.mark.parametrize("size", [6, 4], ids=["abandoned", "too long"])
async def test_a_stream_that_is_not_read_to_its_end_closes_its_source(size):
    closed = []

    async def opened():
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    pieces = aiter(Stream(size, opened))
    assert await anext(pieces) == b"one"
    if size == 6:
        await pieces.aclose()
    else:
        with pytest.raises(BadContent):
            await anext(pieces)
    assert closed == [True]


@given(piece_lists)
async def test_the_last_piece_comes_only_when_the_payload_has_ended_well(pieces):
    full = [piece for piece in pieces if piece]
    assert [piece async for piece in to_the_end(stream(pieces))] == full

    async def failing():
        for piece in pieces:
            yield piece
        raise Unavailable("it broke off")

    got = []

    async def read():
        async for piece in to_the_end(Stream(sum(map(len, pieces)), failing)):
            got.append(piece)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(Unavailable):
        await read()
    assert got == full[:-1]
