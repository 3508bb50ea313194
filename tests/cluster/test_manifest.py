import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen.cluster.manifest import CHUNK, Manifest, decode
from dolmen.errors import Corrupt


@given(st.integers(0, 5 * CHUNK), st.randoms(use_true_random=False))
def test_what_is_encoded_is_decoded(size, rng):
    chunks = [f"chunk{rng.randbytes(32).hex()}" for _ in range(-(-size // CHUNK))]
    manifest = Manifest(size, chunks)
    assert decode(manifest.encode()).size == size
    assert [*decode(manifest.encode()).chunks] == chunks
    assert manifest.encode() == decode(manifest.encode()).encode()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_manifest(data):
    with pytest.raises(Corrupt):
        decode(data)


def test_a_manifest_cut_short_or_too_long_is_refused():
    encoded = Manifest(CHUNK + 1, [f"chunk{'0' * 64}"] * 2).encode()
    for wrong in (encoded[:-1], encoded + b"x", encoded[:-32], encoded[:10]):
        with pytest.raises(Corrupt):
            decode(wrong)


def test_the_encoding_never_changes():
    assert Manifest(5, [f"chunk{'ab' * 32}"]).encode().hex() == (
        "646c6d6e6d66737401000000000040000500000000000000" + "ab" * 32
    )
