"""What a key tells, and its order."""

from hypothesis import given
from hypothesis import strategies as st

from dolmen.metadata import encode
from dolmen.names import checksum_of
from dolmen.record import Kind
from dolmen.store import BlobInfo
from dolmen.stores.objects.head import Head, head_of, heads_of, new_id

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
infos = st.builds(
    BlobInfo,
    name=names,
    size=st.integers(0, 1 << 40),
    kind=st.sampled_from([Kind.BLOB, Kind.MANIFEST, Kind.TOMBSTONE]),
    stamp=st.integers(0, (1 << 64) - 1),
    checksum=st.binary(min_size=16, max_size=16),
    metadata=st.binary(max_size=200).map(lambda value: encode([(b"x", value)])) | st.just(b""),
    arrived=st.integers(0, (1 << 32) - 1),
)


def head(stamp: int, *, meta: bytes = b"", kind: Kind = Kind.BLOB, arrived: int = 5) -> Head:
    info = BlobInfo("name", 4, kind, stamp, checksum_of(b"data"), meta, arrived)
    return head_of(info, new_id(0))


@given(info=infos)
def test_a_key_tells_what_it_was_made_of(info: BlobInfo) -> None:
    written = head_of(info, new_id(1_700_000_000))
    assert len(written.mark) <= 420
    assert all(len(word) <= 255 for word in written.mark.split("/"))
    (read,) = heads_of([written.path])[info.name]
    assert read == written
    assert (read.path, read.rank) == (written.path, info.rank)
    assert read.metadata == (info.metadata if len(info.metadata) <= 96 else None)


@given(one=infos, other=infos)
def test_keys_of_a_partition_sort_as_names_do(one: BlobInfo, other: BlobInfo) -> None:
    def within(info: BlobInfo) -> str:
        return head_of(info, new_id(0)).path.split("/", 2)[2]

    if one.name != other.name:
        assert (within(one) < within(other)) == (one.name < other.name)
    elif one.stamp != other.stamp:
        assert (within(one) < within(other)) == (one.stamp < other.stamp)


def test_the_highest_rank_stands_whatever_the_order_of_the_keys() -> None:
    rising = [
        head(1),
        head(1, meta=encode([(b"a", b"b")])),
        head(1, kind=Kind.MANIFEST),
        head(1, kind=Kind.TOMBSTONE),
        head(2),
    ]
    assert heads_of([one.path for one in reversed(rising)]) == {"name": rising}


def test_of_one_write_twice_the_sound_one_stands() -> None:
    first, again = head(1), head(1)
    heads = heads_of([first.path, again.path, first.mark])["name"]
    assert [(one.id, one.damaged) for one in heads] == [(first.id, True), (again.id, False)]


def test_what_is_no_head_is_passed_over() -> None:
    good = head(1)
    others = ["heads/0000/readme.txt", "heads/x", good.path[:-1] + "?", good.path + "/more", "!"]
    assert heads_of([*others, good.path]) == {"name": [good]}
