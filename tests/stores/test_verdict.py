"""The rules of the contract. There are few enough states to try them all."""

import itertools
from dataclasses import replace

import pytest

from dolmen import metadata
from dolmen.errors import Conflict, NotFound, Unavailable
from dolmen.record import Kind
from dolmen.stamps import HORIZON_MS, Clock
from dolmen.store import BlobInfo, Outcome, rank
from dolmen.stores.old_verdict import (
    NO_CHECKSUM,
    Action,
    judge_delete,
    judge_put,
    judge_touch,
    may_remove,
)

NOW = 1_700_000_000_000
STAMPS = (NOW << 16, (NOW << 16) + 1, (NOW + 5) << 16)
CHECKSUMS = (b"a" * 16, b"b" * 16)
METAS = (b"", metadata.encode([(b"a", b"1")]), metadata.encode([(b"a", b"2")]))


def info(stamp, kind, checksum=NO_CHECKSUM, meta=b""):
    return BlobInfo("name", 0, kind, stamp, checksum, meta)


BLOBS = [
    info(stamp, kind, checksum, meta)
    for stamp in STAMPS
    for kind in (Kind.BLOB, Kind.MANIFEST)
    for checksum in CHECKSUMS
    for meta in METAS
]
WRITES = BLOBS + [info(stamp, Kind.TOMBSTONE) for stamp in STAMPS]
STATES = [None, *WRITES]


def clock():
    return Clock(lambda: NOW)


def judge(standing, write, *, damaged=False, plain=False):
    stamp = None if plain else write.stamp
    if write.kind is Kind.TOMBSTONE:
        return judge_delete(standing, damaged=damaged, stamp=stamp, clock=clock())
    return judge_put(
        "name",
        standing,
        damaged=damaged,
        kind=write.kind,
        checksum=write.checksum,
        metadata=write.metadata,
        stamp=stamp,
        clock=clock(),
    )


def after(standing, write, verdict):
    """What stands when a verdict has been carried out."""
    if verdict.action is Action.KEEP:
        return standing
    if verdict.action is Action.REVISE:
        return replace(standing, stamp=verdict.answer.stamp, metadata=write.metadata)
    return replace(write, stamp=verdict.answer.stamp)


def test_rank_is_a_total_order_by_stamp_then_kind_then_content_then_metadata():
    for one, other in itertools.product(WRITES, repeat=2):
        assert (one.rank < other.rank) + (one.rank == other.rank) + (one.rank > other.rank) == 1
        assert (one.rank == other.rank) is (one == other)
    ordered = sorted(WRITES, key=lambda write: write.rank)
    keys = [
        (write.stamp, write.kind, write.checksum, metadata.hash_of(write.metadata))
        for write in ordered
    ]
    assert keys == sorted(keys)
    assert info(STAMPS[0], Kind.TOMBSTONE).rank > max(
        write.rank for write in BLOBS if write.stamp == STAMPS[0]
    )


@pytest.mark.parametrize("standing", STATES)
def test_a_stamped_write_leaves_the_higher_rank_and_says_so(standing):
    for write in WRITES:
        verdict = judge(standing, write)
        stands = after(standing, write, verdict)
        assert verdict.answer.stamp == stands.stamp
        if standing is None:
            assert verdict == (Action.WRITE, (Outcome.CREATED, write.stamp))
            continue
        assert stands.rank == max(standing.rank, write.rank), "monotone"
        if write.rank < standing.rank:
            assert verdict == (Action.KEEP, (Outcome.SUPERSEDED, standing.stamp))
        elif write.rank == standing.rank:
            assert verdict == (Action.KEEP, (Outcome.UNCHANGED, standing.stamp))
        elif write.kind is not Kind.TOMBSTONE and (write.kind, write.checksum) == (
            standing.kind,
            standing.checksum,
        ):
            assert verdict == (Action.REVISE, (Outcome.UNCHANGED, write.stamp))
        else:
            assert verdict == (Action.WRITE, (Outcome.CREATED, write.stamp))


def test_copies_converge_whatever_the_order_and_however_often():
    for bundle in itertools.combinations(WRITES[::4] + WRITES[-1:], 3):
        highest = max(bundle, key=lambda write: write.rank)
        for order in itertools.permutations(bundle + bundle[:1]):
            standing = None
            for write in order:
                standing = after(standing, write, judge(standing, write))
            assert standing == highest


@pytest.mark.parametrize("standing", STATES)
def test_a_plain_write_is_stamped_above_or_refused(standing):
    for write in WRITES:
        live = standing is not None and standing.kind is not Kind.TOMBSTONE
        same = live and (write.kind, write.checksum) == (standing.kind, standing.checksum)
        if live and not same and write.kind is not Kind.TOMBSTONE:
            with pytest.raises(Conflict, match="delete it first"):
                judge(standing, write, plain=True)
            continue
        verdict = judge(standing, write, plain=True)
        assert verdict.action is (Action.REVISE if same else Action.WRITE)
        assert verdict.answer.outcome is (Outcome.UNCHANGED if same else Outcome.CREATED)
        stands = after(standing, write, verdict)
        assert stands.metadata == write.metadata
        assert stands.stamp == verdict.answer.stamp
        assert standing is None or stands.rank > standing.rank


@pytest.mark.parametrize("standing", BLOBS)
def test_a_damaged_copy_is_replaced_by_its_content_and_by_nothing_staler(standing):
    for write in BLOBS:
        same = write.checksum == standing.checksum
        verdict = judge(standing, write, damaged=True)
        if same or write.rank >= standing.rank:
            assert verdict == (Action.WRITE, (Outcome.CREATED, write.stamp))
        else:
            assert verdict == (Action.KEEP, (Outcome.SUPERSEDED, standing.stamp))
    verdict = judge(standing, standing, damaged=True, plain=True)
    assert verdict.action is Action.WRITE
    assert verdict.answer.stamp > standing.stamp


def test_what_stands_far_ahead_gets_nothing_plain_above_it():
    far = (NOW + HORIZON_MS + 1) << 16
    for standing in (info(far, Kind.BLOB, CHECKSUMS[0]), info(far, Kind.TOMBSTONE)):
        for write in (info(0, Kind.BLOB, CHECKSUMS[0]), info(0, Kind.TOMBSTONE)):
            with pytest.raises(Unavailable, match="hours ahead"):
                judge(standing, write, plain=True)
            assert judge(standing, replace(write, stamp=far + 1)).answer.stamp == far + 1


@pytest.mark.parametrize("standing", STATES)
def test_a_touch_raises_what_is_live_with_that_checksum(standing):
    for write in BLOBS:

        def touch(write=write, *, damaged=False):
            return judge_touch(
                "name",
                standing,
                damaged=damaged,
                checksum=write.checksum,
                metadata=write.metadata,
                stamp=write.stamp,
            )

        live = standing is not None and standing.kind is not Kind.TOMBSTONE
        if not live or standing.checksum != write.checksum:
            with pytest.raises(NotFound) as caught:
                touch()
            deleted = standing is not None and not live
            assert caught.value.stamp == (standing.stamp if deleted else 0)
            continue
        verdict = touch()
        new = rank(write.stamp, standing.kind, write.checksum, write.metadata)
        if new >= standing.rank:  # at the same rank it renews the time of arrival
            assert verdict == (Action.REVISE, (Outcome.UNCHANGED, write.stamp))
            assert after(standing, write, verdict).rank == new
        else:
            assert verdict == (Action.KEEP, (Outcome.SUPERSEDED, standing.stamp))
        with pytest.raises(NotFound):
            touch(damaged=True)


def test_a_copy_is_removed_only_at_its_stamp_and_age():
    standing = replace(info(STAMPS[0], Kind.BLOB), arrived=1000)
    cases = [
        (STAMPS[0], 0, 1000, True),
        (STAMPS[0], 10, 1010, True),
        (STAMPS[0], 10, 1009.9, False),
        (STAMPS[0], 10, 990, False),
        (STAMPS[1], 0, 5000, False),
        (0, 0, 5000, False),
    ]
    for stamp, min_age, now, removed in cases:
        assert may_remove(standing, if_stamp=stamp, min_age=min_age, now=now) is removed
    assert not may_remove(None, if_stamp=0, min_age=0, now=5000)


@pytest.mark.parametrize("standing", WRITES)
def test_a_damaged_copy_gives_way_to_its_own_delete_and_to_newer_ones(standing):
    for stamp in STAMPS:
        tombstone = info(stamp, Kind.TOMBSTONE)
        verdict = judge(standing, tombstone, damaged=True)
        if tombstone.rank >= standing.rank:
            assert verdict == (Action.WRITE, (Outcome.CREATED, stamp))
        else:
            assert verdict == (Action.KEEP, (Outcome.SUPERSEDED, standing.stamp))
