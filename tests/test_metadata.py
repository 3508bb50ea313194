import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen.errors import InvalidName, TooLarge
from dolmen.metadata import METADATA_MAX, check, decode, encode, hash_of

field_names = st.binary(min_size=1, max_size=40)
values = st.binary(max_size=60)
fields = st.lists(st.tuples(field_names, values), max_size=12)


def test_the_encoding_is_as_written_down():
    assert encode([(b"X-B", b"2"), (b"a", b"")]) == b"\x01\0\0a" + b"\x03\x01\0x-b2"
    assert encode([]) == b""
    assert list(decode(b"")) == []
    assert hash_of(b"") == bytes(16)


@given(fields)
def test_what_is_encoded_is_canonical_and_decodes(pairs):
    encoded = encode(pairs)
    assert check(encoded) == encoded
    decoded = list(decode(encoded))
    assert decoded == sorted(decoded)
    assert dict(decoded).keys() == {name.lower() for name, _ in pairs}
    for name, value in decoded:
        assert value == b", ".join(given for raw, given in pairs if raw.lower() == name)
    assert encode(decoded) == encoded


@given(st.dictionaries(field_names.map(bytes.lower), values, max_size=8), st.randoms())
def test_the_order_and_case_of_names_do_not_matter(pairs, rng):
    shuffled = [(name.upper().lower().title(), value) for name, value in pairs.items()]
    rng.shuffle(shuffled)
    assert encode(shuffled) == encode(pairs.items())


@given(
    st.binary(max_size=200)
    | fields.map(encode).flatmap(
        lambda encoded: st.integers(0, max(0, len(encoded) - 1)).flatmap(
            lambda at: st.binary(max_size=3).map(
                lambda junk: encoded[:at] + junk + encoded[at + 1 :]
            )
        )
    )
)
def test_any_bytes_are_canonical_or_refused(encoded):
    try:
        check(encoded)
    except InvalidName:
        return
    assert encode(decode(encoded)) == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x01\0\0b" + b"\x01\0\0a",
        b"\x01\0\0a" * 2,
        b"\x01\0\0A",
        b"\0\0\0",
        b"\x01",
        b"\x01\0",
        b"\x01\x02\0a1",
        b"\x01\0\0a\x05",
    ],
    ids=["unsorted", "twice", "upper", "unnamed", "no-length", "half-length", "short", "tail"],
)
def test_other_encodings_of_the_same_are_refused(encoded):
    with pytest.raises(InvalidName):
        check(encoded)


@pytest.mark.parametrize("name", [b"", b"n" * 256, b"n" * 70_000])
def test_a_name_has_1_to_255_bytes(name):
    with pytest.raises(InvalidName):
        encode([(name, b"value")])
    assert len(encode([(b"n" * 255, b"")])) == 258


def test_metadata_has_at_most_16_kib():
    full = encode([(b"a", bytes(METADATA_MAX - 4))])
    assert len(full) == METADATA_MAX
    assert check(full) == full
    for pairs in (
        [(b"a", bytes(METADATA_MAX - 3))],
        [(b"a", bytes(1 << 20))],
        [(b"a", bytes(9000)), (b"b", bytes(9000))],
        [(b"a", bytes(9000)), (b"A", bytes(9000))],
    ):
        with pytest.raises(TooLarge):
            encode(pairs)
    with pytest.raises(TooLarge):
        check(full + b"\x01\0\0b")


@given(fields, fields)
def test_a_hash_tells_metadata_apart(one, other):
    one, other = encode(one), encode(other)
    assert len(hash_of(one)) == 16
    assert (hash_of(one) == hash_of(other)) is (one == other)
