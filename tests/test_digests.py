import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import BadContent
from dolmen.record import Kind

META = metadata.encode([(b"content-type", b"text/plain")])
entries = st.builds(
    entry_hash,
    st.binary(max_size=8),
    st.integers(0, 3),
    st.sampled_from([Kind.BLOB, Kind.TOMBSTONE]),
    st.just(bytes(16)),
    st.just(b""),
)
contents = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 40), entries), max_size=20)


def digests_of(content):
    slots = {}
    for partition, size, entry in content:
        slots.setdefault(partition, Slot()).add(size, entry)
    return Digests(slots)


@given(contents, contents, st.randoms())
def test_neither_order_nor_what_was_taken_out_again_shows(content, passing, rng):
    arriving = content + passing
    rng.shuffle(arriving)
    slots = digests_of(arriving).slots
    for partition, size, entry in passing:
        slots.setdefault(partition, Slot()).drop(size, entry)
    digests = Digests(slots)
    assert digests == digests_of(content)
    assert digests.encode() == digests_of(content).encode()
    assert digests.root == digests_of(content).root


@given(contents)
def test_digests_sum_up_all_partitions_and_decode_as_they_were_encoded(content):
    digests = digests_of(content)
    assert digests.count == len(content)
    assert digests.size == sum(size for _, size, _ in content)
    assert list(digests.slots) == sorted({partition for partition, _, _ in content})
    again = Digests.decode(digests.encode())
    assert again == digests
    assert again.root == digests.root
    assert len(digests.encode()) == 30 * len(digests.slots)


def test_the_encoding_is_the_one_written_down():
    digests = Digests({258: Slot(3, 4, 5), 1: Slot(1, 2, 1 << 127), 7: Slot()})
    assert digests.encode() == (
        struct.pack("<HIQ", 1, 1, 2) + bytes(15) + b"\x80"
        + struct.pack("<HIQ", 258, 3, 4) + b"\x05" + bytes(15)
    )  # fmt: skip
    assert digests.root == "e6e00a0cc894b247979a5948d7158866"
    assert Digests({}).root == "af1349b9f5f9a1a6a0404dea36dcc949"  # BLAKE3 of no bytes


@given(st.binary(max_size=100))
def test_any_bytes_are_digests_or_bad_content(encoded):
    try:
        digests = Digests.decode(encoded)
    except BadContent:
        return
    assert digests.encode() == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        bytes(29),
        Digests({1: Slot(1)}).encode() * 2,
        Digests({2: Slot(1)}).encode() + Digests({1: Slot(1)}).encode(),
        bytes(30),
    ],
    ids=["cut", "twice", "descending", "empty slot"],
)
def test_other_encodings_are_refused(encoded):
    with pytest.raises(BadContent):
        Digests.decode(encoded)


@given(contents, contents)
def test_stores_differ_in_exactly_the_partitions_whose_entries_do(one, other):
    def slot(content, partition):
        return digests_of([entry for entry in content if entry[0] == partition]).encode()

    differing = [part for part in range(6) if slot(one, part) != slot(other, part)]
    assert list(digests_of(one).differing(digests_of(other))) == differing
    assert list(digests_of(other).differing(digests_of(one))) == differing
    assert (digests_of(one) == digests_of(other)) is (not differing)


def test_every_part_of_an_entry_counts():
    parts = {"name": b"name", "stamp": 1, "kind": 1, "checksum": bytes(16), "metadata": META}
    others = {"name": b"nam", "stamp": 2, "kind": 2, "checksum": b"1" * 16, "metadata": b""}
    hashes = {entry_hash(**parts)}
    for part, other in others.items():
        hashes.add(entry_hash(**(parts | {part: other})))
    assert len(hashes) == 1 + len(others)
    assert all(0 <= each < 1 << 128 for each in hashes)


def test_an_entrys_hash_never_changes():
    # Two servers of different versions compare these.
    found = entry_hash(b"name", 0x018BCFE5680000AB, Kind.BLOB, bytes(range(16)), META)
    assert found == 0x3DE16DF352B6DF31676DD76C6CFA31B9
    found = entry_hash(b"name", 0x018BCFE568000000, Kind.TOMBSTONE, bytes(16), b"")
    assert found == 0xB78160C15627EE1340D76D0FE4813FB8
