import hashlib
import string
import zlib
from collections import Counter

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from dolmen.errors import InvalidName
from dolmen.names import (
    PARTITIONS,
    check_name,
    checksum_of,
    chunk_name,
    is_chunk_name,
    is_object_id,
    matches_name,
    partition_of,
)

FIRST = string.ascii_letters + string.digits
REST = FIRST + "._-"
good_names = st.builds(
    str.__add__, st.sampled_from(FIRST), st.text(st.sampled_from(REST), max_size=127)
)


@given(good_names | st.text(max_size=4) | st.text(st.sampled_from(REST), max_size=140))
def test_only_names_of_the_form_are_taken(name):
    if 0 < len(name) <= 128 and name[0] in FIRST and set(name) <= set(REST):
        assert check_name(name) == name
        assert 0 <= partition_of(name) < PARTITIONS
    else:
        with pytest.raises(InvalidName):
            check_name(name)


@pytest.mark.parametrize("name", ["", "a\n", "\na", "x" * 129, "x" * 10_000, "a\u0661", "\ud800"])
def test_a_refusal_shows_the_name_and_what_is_allowed(name):
    with pytest.raises(InvalidName, match="1 to 128 characters") as caught:
        check_name(name)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


def test_partitions_are_the_upper_half_of_crc32_and_evenly_filled():
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert partition_of("123456789") == 0xCBF4
    counts = Counter(partition_of(f"name-{number}") >> 12 for number in range(16_000))
    assert len(counts) == 16
    assert 900 < min(counts.values()) <= max(counts.values()) < 1100


@given(st.binary(max_size=200))
def test_a_digest_names_its_content_and_no_other(data):
    other = data + b"!"
    for name in (
        hashlib.sha256(data).hexdigest(),
        hashlib.sha1(data).hexdigest(),
        chunk_name(data),
    ):
        assert check_name(name)
        assert matches_name(name, data)
        assert not matches_name(name, other)
        assert is_object_id(name) is not is_chunk_name(name)
    # Only the digest that the length stands for is checked.
    assert matches_name(blake3(data).hexdigest(), data) is False
    assert chunk_name(data) == f"chunk{blake3(data).hexdigest()}"
    assert chunk_name(data).removeprefix("chunk")[:32] == checksum_of(data).hex()
    assert checksum_of(bytearray(data)) == checksum_of(memoryview(data)) == checksum_of(data)


@pytest.mark.parametrize(
    "name",
    ["a", "A" * 64, *("a" * n for n in (39, 63, 65)), "g" * 64, "chunk" + "a" * 63,
     "chunk" + "A" * 64],
)  # fmt: skip
def test_any_other_name_is_no_digest(name):
    assert not is_object_id(name)
    assert not is_chunk_name(name)
    assert matches_name(name, b"whatever")


def test_digests_of_known_content():
    assert matches_name("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", b"")
    assert matches_name("a9993e364706816aba3e25717850c26c9cd0d89d", b"abc")
    # BLAKE3's own test vector of no bytes.
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert chunk_name(b"") == "chunk" + empty
    assert checksum_of(b"") == bytes.fromhex(empty[:32])
