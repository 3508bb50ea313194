"""The record's framing. The files in tests/golden never change: what is on disk stays readable."""

import struct
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.errors import Corrupt
from dolmen.names import checksum_of
from dolmen.record import (
    BLOCK,
    HEAD_MAX,
    HEADER_SIZE,
    BlockSums,
    Head,
    Kind,
    block_sums,
    blocks_match,
    decode_head,
    encode_head,
    head_size,
    record_size,
    sums_size,
)

GOLDEN = Path(__file__).parent / "golden"
META = metadata.encode([(b"content-type", b"text/plain"), (b"x-note", b"\x00\xff")])
OWNER = bytes(range(16))
PATTERN = bytes(number * number % 251 for number in range(2 * BLOCK + 1))
# File, kind, name, metadata, data, stamp, and what it only has on disk.
GOLDEN_RECORDS = [
    ("blob", Kind.BLOB, b"name", b"", b"content", 0x018BCFE5680000AB, {}),
    ("blob-with-metadata", Kind.BLOB, b"x" * 128, META, b"content", 1, {}),
    ("blob-of-several-blocks", Kind.BLOB, b"blocks", META, PATTERN, 2, {}),
    ("empty-blob", Kind.BLOB, b"0", b"", b"", 0, {}),
    ("manifest", Kind.MANIFEST, b"a" * 64, META, b"chunks", (1 << 64) - 1, {}),
    ("tombstone", Kind.TOMBSTONE, b"deleted", b"", b"", 0x018BCFE568000000, {}),
    (
        "blob-on-disk",
        Kind.BLOB,
        b"name",
        META,
        b"content",
        3,
        {"arrived": 0x0102030405060708, "owner": OWNER, "flushed": 0x0A0B0C0D},
    ),
]

heads = st.builds(
    Head,
    kind=st.integers(0, 255),
    name=st.binary(max_size=128),
    metadata=st.binary(max_size=300),
    length=st.integers(0, (1 << 64) - 1),
    stamp=st.integers(0, (1 << 64) - 1),
    arrived=st.integers(0, (1 << 64) - 1),
    checksum=st.binary(min_size=16, max_size=16),
    owner=st.binary(min_size=16, max_size=16),
    flushed=st.integers(0, (1 << 32) - 1),
)


def encoded(head: Head) -> bytes:
    return encode_head(
        head.kind, head.name, head.metadata, head.length, head.stamp, head.checksum,
        arrived=head.arrived, owner=head.owner, flushed=head.flushed,
    )  # fmt: skip


def sum_of(kind: Kind, data: bytes) -> bytes:
    return bytes(16) if kind is Kind.TOMBSTONE else checksum_of(data)


@pytest.mark.parametrize("golden", GOLDEN_RECORDS, ids=lambda golden: golden[0])
def test_a_golden_record_reads_and_is_written_as_ever(golden):
    file, kind, name, meta, data, stamp, on_disk = golden
    stored = (GOLDEN / f"{file}.record").read_bytes()
    head = decode_head(stored)
    checksum = sum_of(kind, data)
    disk = {"arrived": 0, "owner": bytes(16), "flushed": 0} | on_disk
    assert head == Head(kind, name, meta, len(data), stamp, checksum=checksum, **disk)
    end = head.data_offset + head.length
    assert stored[head.data_offset : end] == data
    assert blocks_match(data, stored[end:])
    assert head.size == len(stored)
    again = encode_head(kind, name, meta, len(data), stamp, checksum, **on_disk)
    assert again + data + block_sums(data) == stored


def test_every_golden_file_is_read():
    assert {path.name for path in GOLDEN.glob("*.record")} == {
        f"{file}.record" for file, *_ in GOLDEN_RECORDS
    }


@given(heads)
def test_the_layout_is_the_one_written_down(head):
    raw = encoded(head)
    fields = struct.pack("<4sBBB", b"dlmn", 1, head.kind, len(head.name)) + b"\0"
    fields += struct.pack("<H", len(head.metadata)) + b"\0\0"
    fields += struct.pack("<QQQ", head.length, head.stamp, head.arrived)
    fields += head.checksum + head.owner + struct.pack("<I", head.flushed)
    crc = struct.pack("<I", crc32c(fields + head.name + head.metadata))
    assert raw == fields + crc + head.name + head.metadata
    assert len(fields) + 4 == HEADER_SIZE == 76


def test_the_checksum_of_a_block_is_castagnolis():
    assert block_sums(b"123456789") == struct.pack("<I", 0xE3069283)
    # RFC 3720, appendix B.4: 32 bytes of zeros.
    assert block_sums(bytes(32)) == bytes.fromhex("aa36918a")


@given(heads, st.binary(max_size=20), st.binary(max_size=20), st.sampled_from([bytes, memoryview]))
def test_a_head_is_read_wherever_it_stands(head, before, behind, buffer):
    raw = encoded(head)
    assert decode_head(buffer(before + raw + behind), len(before)) == head
    assert head_size(buffer(raw)) == len(raw) == head.data_offset
    assert head.size == record_size(len(head.name), len(head.metadata), head.length)
    assert head.size == len(raw) + head.length + sums_size(head.length)


def test_the_longest_head_has_the_length_announced():
    raw = encode_head(Kind.BLOB, b"n" * 128, bytes(16_384), 0, 0, bytes(16))
    assert len(raw) == HEAD_MAX
    assert decode_head(raw).metadata == bytes(16_384)


@given(
    st.binary(max_size=400)
    | st.binary(max_size=400).map(b"dlmn\x01".__add__)
    | st.builds(
        lambda head, at, junk: encoded(head)[:at] + junk + encoded(head)[at + len(junk) :],
        heads,
        st.integers(0, 400),
        st.binary(min_size=1, max_size=30),
    )
)
def test_any_bytes_are_a_head_or_corrupt(raw):
    try:
        head = decode_head(raw)
    except Corrupt:
        return
    assert raw.startswith(encoded(head)), "what is believed is what was written"


def test_any_flipped_bit_of_a_head_is_found():
    name, meta = b"name", META
    raw = encode_head(
        Kind.BLOB, name, meta, 7, 5, checksum_of(b"content"), owner=OWNER, flushed=9, arrived=4
    )
    for behind in (b"", b"content" + block_sums(b"content"), bytes(HEAD_MAX)):
        for bit in range(8 * len(raw)):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Corrupt):
                decode_head(bytes(damaged) + behind)


def test_a_head_cut_short_anywhere_is_corrupt():
    raw = encode_head(Kind.BLOB, b"name", META, 7, 5, bytes(16))
    for length in range(len(raw)):
        with pytest.raises(Corrupt):
            decode_head(raw[:length])
        with pytest.raises(Corrupt):
            decode_head(bytes(3) + raw[:length], 3)


def test_another_version_is_named():
    raw = bytearray(encode_head(Kind.BLOB, b"name", b"", 0, 0, bytes(16)))
    raw[4] = 2
    with pytest.raises(Corrupt, match="version 2; this dolmen reads version 1"):
        decode_head(bytes(raw))


def test_kinds_have_the_numbers_on_disk():
    assert [(kind.name, kind.value) for kind in Kind] == [
        ("BLOB", 1),
        ("MANIFEST", 2),
        ("TOMBSTONE", 3),
        ("TOUCH", 4),
        ("REMOVAL", 5),
        ("REFUSED", 7),
        ("MARK", 8),
    ]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1])
def test_there_is_one_checksum_for_every_block_begun(size):
    data = PATTERN[:size]
    sums = block_sums(data)
    assert len(sums) == sums_size(size) == 4 * -(-size // BLOCK)
    for number, at in enumerate(range(0, size, BLOCK)):
        assert sums[4 * number : 4 * number + 4] == block_sums(data[at : at + BLOCK])
    for buffer in (bytearray, memoryview):
        assert block_sums(buffer(data)) == sums
    assert blocks_match(memoryview(data), memoryview(sums))


@given(st.lists(st.integers(0, 90_000), max_size=5))
def test_checksums_of_pieces_are_those_of_the_whole(lengths):
    sums, data = BlockSums(), bytearray()
    for length in lengths:
        piece = PATTERN[len(data) % 1000 :][:length]
        sums.update(piece)
        data += piece
        assert sums.digest() == block_sums(data), "at any time"


@given(st.sampled_from([1, 100, BLOCK, BLOCK + 1, 2 * BLOCK + 1]), st.data())
def test_any_flipped_bit_of_the_data_is_found(size, data):
    damaged = bytearray(PATTERN[:size])
    sums = block_sums(damaged)
    bit = data.draw(st.integers(0, 8 * size - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    assert not blocks_match(damaged, sums)
    assert not blocks_match(PATTERN[: size - 1], sums)
