"""The rules of the contract: every pair of writes, and any sequence of them on any copies."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.errors import BadContent, Conflict, DolmenError, InvalidName, NotFound, TooLarge
from dolmen.names import checksum_of, chunk_name
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.resolve import Action, check, check_content, check_key, may_remove, resolve
from dolmen.stamps import AHEAD_MS, MAX_STAMP, Clock
from dolmen.store import IDENTITY, NO_CHECKSUM, BlobInfo, Outcome, Put, Write

NOW = 1_700_000_000_000
AHEAD = (NOW + 1000 * AHEAD_MS) << 16
STAMPS = (NOW << 16, (NOW << 16) + 1, (NOW + 5) << 16, AHEAD)
CHECKSUMS = (b"a" * 16, b"b" * 16)
METAS = (b"", metadata.encode([(b"a", b"1")]), metadata.encode([(b"a", b"2")]))


def write(stamp, kind, checksum=NO_CHECKSUM, meta=b""):
    return Write("name", kind=kind, metadata=meta, stamp=stamp, checksum=checksum)


PUTS = [
    write(*parts)
    for parts in itertools.product(STAMPS, (Kind.BLOB, Kind.MANIFEST), CHECKSUMS, METAS)
]
TOMBSTONES = [write(stamp, Kind.TOMBSTONE) for stamp in STAMPS]
WRITES = PUTS + TOMBSTONES
TOUCHES = [write(*parts) for parts in itertools.product(STAMPS, (Kind.TOUCH,), CHECKSUMS, METAS)]


class Copy:
    """What one store has of the name, carrying out what is decided as an engine does."""

    def __init__(self, write=None, *, damaged=False):
        self.info, self.damaged = write and info_of(write), damaged

    def take(self, write):
        """Carry out a write; return its answer, or the error it raises."""
        clock = Clock(lambda: NOW)
        try:
            action, put = resolve(
                write, self.info, checksum=write.checksum, damaged=self.damaged, clock=clock
            )
        except DolmenError as error:
            return error
        if action is Action.TOUCH:
            assert not self.damaged
            assert write.checksum == self.info.checksum
            self.info = replace(self.info, stamp=put.stamp, metadata=write.metadata)
        elif action is Action.WRITE:
            self.info, self.damaged = info_of(replace(write, stamp=put.stamp)), False
        assert put.stamp == self.info.stamp, "the answer says which stamp is current"
        return put


def info_of(write):
    return BlobInfo("name", 0, write.kind, write.stamp, write.checksum, write.metadata)


def rank(write):
    return info_of(write).rank


def same_content(one, other):
    return (one.kind, one.checksum) == (other.kind, other.checksum)


def test_rank_orders_all_writes_by_stamp_then_kind_then_content_then_metadata():
    def key(write):
        return write.stamp, write.kind, write.checksum, metadata.hash_of(write.metadata)

    assert sorted(WRITES, key=rank) == sorted(WRITES, key=key)
    assert len({rank(write) for write in WRITES}) == len(WRITES)
    assert Kind.BLOB < Kind.MANIFEST < Kind.TOMBSTONE, "a tombstone wins a tie"


def test_of_two_stamped_writes_the_higher_rank_is_current_and_the_answer_says_so():
    for write in WRITES:
        assert Copy().take(write) == Put(Outcome.CREATED, write.stamp)
    for before, write in itertools.product(WRITES, repeat=2):
        copy = Copy(before)
        answer = copy.take(write)
        assert copy.info.rank == max(rank(before), rank(write))
        if rank(write) < rank(before):
            expected = Outcome.SUPERSEDED
        elif write == before or (write.kind != Kind.TOMBSTONE and same_content(write, before)):
            expected = Outcome.UNCHANGED
        else:
            expected = Outcome.CREATED
        assert answer.outcome is expected, (before, write)


def test_a_plain_write_is_stamped_above_or_is_a_conflict():
    for before, write in itertools.product([None, *WRITES], WRITES[:12] + TOMBSTONES[:1]):
        copy = Copy(before)
        answer = copy.take(replace(write, stamp=None))
        live = before is not None and before.kind != Kind.TOMBSTONE
        same = live and same_content(write, before)
        if live and not same and write.kind != Kind.TOMBSTONE:
            assert isinstance(answer, Conflict)
            assert "delete it first" in str(answer)
            assert copy.info == info_of(before)
            continue
        assert answer.outcome is (Outcome.UNCHANGED if same else Outcome.CREATED)
        assert copy.info == info_of(replace(write, stamp=answer.stamp))
        if before is None or before.stamp < AHEAD:
            assert STAMPS[0] <= answer.stamp <= max(STAMPS[0], before.stamp + 1 if before else 0)
        else:  # written by a clock far ahead: as little above it as can be
            assert answer.stamp == AHEAD + 1
        assert before is None or answer.stamp > before.stamp


def test_a_touch_is_the_put_of_what_is_there_and_finds_nothing_else():
    for before, touch, damaged in itertools.product([None, *WRITES], TOUCHES, (False, True)):
        touched, put = Copy(before, damaged=damaged), Copy(before)
        answer = touched.take(touch)
        if damaged or before is None or before.checksum != touch.checksum:
            assert isinstance(answer, NotFound)
            deleted = before is not None and before.kind == Kind.TOMBSTONE
            assert answer.stamp == (before.stamp if deleted else 0)
            assert touched.info == (before and info_of(before))
        else:
            assert answer == put.take(replace(touch, kind=before.kind))
            assert touched.info == put.info
            assert answer.outcome is not Outcome.CREATED


def test_a_damaged_copy_is_replaced_by_its_content_and_what_ranks_as_high():
    for before, write, plain in itertools.product(WRITES, WRITES, (False, True)):
        copy = Copy(before, damaged=True)
        answer = copy.take(replace(write, stamp=None) if plain else write)
        same = write.kind != Kind.TOMBSTONE and same_content(write, before)
        free = Kind.TOMBSTONE in (write.kind, before.kind)
        if same or (free if plain else rank(write) >= rank(before)):
            stamp = answer.stamp if plain else write.stamp
            assert answer == Put(Outcome.CREATED, stamp), "nothing of it was of use"
            assert not plain or stamp > before.stamp
            assert not copy.damaged
            assert copy.info == info_of(replace(write, stamp=stamp))
        else:
            if plain:
                assert isinstance(answer, Conflict)
            else:
                assert answer == Put(Outcome.SUPERSEDED, before.stamp)
            assert copy.damaged
            assert copy.info == info_of(before)


stamped = st.lists(st.sampled_from(WRITES), min_size=1, max_size=8)


@given(stamped, st.data())
def test_copies_converge_in_whatever_order_writes_arrive_and_however_often(writes, data):
    copy = Copy()
    for write in data.draw(st.permutations(writes + writes[:3])):
        copy.take(write)
    assert copy.info == info_of(max(writes, key=rank))


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([*WRITES, *TOUCHES, "damage"]), st.booleans()),
        max_size=20,
    )
)
def test_copies_that_took_different_writes_converge_by_copying_from_one_another(events):
    copies = [Copy(), Copy(), Copy()]
    for which, write, plain in events:
        copy = copies[which]
        if write != "damage":
            copy.take(replace(write, stamp=None) if plain and write.kind != Kind.TOUCH else write)
        elif copy.info is not None and copy.info.kind != Kind.TOMBSTONE:
            copy.damaged = True
    sound = [copy.info for copy in copies if copy.info is not None and not copy.damaged]
    highest = max((info.rank for info in sound), default=None)
    for _ in range(2):
        for source, target in itertools.permutations(copies, 2):
            if source.info is not None and not source.damaged:
                info = source.info
                target.take(write_of(info))
    for copy in copies:
        if copy.damaged:  # nothing sound has its content, and what there is ranks lower
            assert highest is None or copy.info.rank > highest
        else:
            assert (copy.info and copy.info.rank) == highest


def write_of(info):
    return write(info.stamp, info.kind, info.checksum, info.metadata)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Write("name", metadata=bytes(20_000)), TooLarge),
        (Write("name", kind=99), BadContent),
        (Write("name", kind=Kind.TOUCH, checksum=CHECKSUMS[0]), BadContent),
        (Write("name", kind=Kind.TOUCH, stamp=STAMPS[0]), BadContent),
        (replace(TOUCHES[0], payload=Bytes(b"data")), BadContent),
    ],
)
def test_a_write_of_another_form_is_refused(wrong, error):
    # The conformance suite has the rest of them.
    with pytest.raises(error):
        check(wrong)


def test_a_write_of_the_right_form_comes_back_as_it_is():
    for right in (
        *WRITES,
        *TOUCHES,
        Write("name"),
        Write("name", stamp=0, metadata=METAS[1]),
        Write.tombstone("name", stamp=MAX_STAMP),
        Write.tombstone(chunk_name(b"x")),
        Write(chunk_name(b"x"), Bytes(b"x"), checksum=checksum_of(b"x")),
    ):
        assert check(right) is right


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_chunks_name_takes_its_own_content_and_any_other_name_what_was_announced(one, other):
    same = one == other
    for put, taken in (
        (Write(chunk_name(one)), same),
        (Write(chunk_name(one), kind=Kind.MANIFEST), False),
        (Write("name", checksum=checksum_of(one)), same),
        (Write("name", kind=Kind.MANIFEST), True),
    ):
        if taken:
            check_content(put, checksum_of(other))
        else:
            with pytest.raises(BadContent):
                check_content(put, checksum_of(other))


def test_the_identity_of_a_store_is_no_note_that_may_be_written():
    assert check_key("scrub") == "scrub"
    with pytest.raises(InvalidName, match="never changes"):
        check_key(IDENTITY)


@pytest.mark.parametrize(
    ("stamp", "min_age", "now", "removed"),
    [
        (STAMPS[0], 0, 990, True),  # the clock was set back since
        (STAMPS[0], 10, 1010, True),
        (STAMPS[0], 10, 1009.9, False),
        (STAMPS[0], 10, 990, False),
        (STAMPS[1], 0, 5000, False),
    ],
)
def test_a_copy_is_removed_only_at_its_stamp_and_age(stamp, min_age, now, removed):
    current = replace(info_of(PUTS[0]), arrived=1000)
    assert may_remove(current, if_stamp=stamp, min_age=min_age, now=now) is removed
    assert not may_remove(None, if_stamp=stamp, min_age=min_age, now=now)
