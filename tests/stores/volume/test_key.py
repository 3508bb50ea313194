"""Keys of the index: short, and told apart for every name."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dolmen.names import partition_of
from dolmen.stores.volume.key import key_of, name_of

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.one_of(
    HEX,
    HEX.map(lambda digits: digits[:40]),
    HEX.map(lambda digits: "chunk" + digits),
    HEX.map(str.upper),
    HEX.map(lambda digits: "Chunk-" + digits),
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"),
)


@given(NAMES)
@example("a" * 63 + ".")
@example("chunk" + "0" * 63 + "G")
def test_a_key_gives_its_name_back(name):
    key = key_of(name)
    assert name_of(key) == name
    assert int.from_bytes(key[:2]) == partition_of(name)


@given(NAMES, NAMES)
def test_two_names_have_two_keys(one, other):
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "size"), [("0f" * 32, 35), ("0f" * 20, 23), ("chunk" + "0f" * 32, 35), ("name", 6)]
)
def test_digits_are_packed(name, size):
    assert len(key_of(name)) == size
