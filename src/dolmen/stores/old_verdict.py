"""What a write does to what stands: the rules of the contract, as pure functions.

Every engine that decides in Python asks here, inside whatever makes its own
decision atomic (a lock, a transaction), and then carries the verdict out.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from dolmen.errors import Conflict, InvalidName, NotFound
from dolmen.metadata import hash_of
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import BlobInfo, Outcome, Put, Rank


def rank(stamp: int, kind: int, checksum: bytes, meta: bytes) -> Rank:
    """The rank of a write, from its parts."""
    return Rank(stamp, kind, checksum, hash_of(meta))


NO_CHECKSUM = bytes(16)


class Action(enum.Enum):
    """What the engine has to do."""

    KEEP = enum.auto()
    """Nothing."""
    WRITE = enum.auto()
    """Store the write whole, in place of what stands."""
    REVISE = enum.auto()
    """Keep the data that stands and give it this stamp and metadata."""


class Verdict(NamedTuple):
    """What to do, and the answer to give once it is done."""

    action: Action
    answer: Put


def judge_put(
    name: str,
    standing: BlobInfo | None,
    *,
    damaged: bool,
    kind: int,
    checksum: bytes,
    metadata: bytes,
    stamp: int | None,
    clock: Clock,
) -> Verdict:
    """Decide a put. `damaged` says that the copy that stands is quarantined.

    A damaged copy is replaced by the same content, whatever its stamp (and kind, which
    may be lost with it), and by what ranks at least as high; other content of a lower rank
    still loses to it, or a stale copy would be served in place of what was acknowledged.

    Raises `Conflict` for a put without a stamp onto other live content.
    """
    if standing is None:
        return _write(clock.next() if stamp is None else stamp)
    same = standing.checksum == checksum and (damaged or standing.kind == kind)
    if stamp is None:
        deleted = standing.kind == Kind.TOMBSTONE
        if not (deleted or same):
            raise Conflict(
                f"{name} already holds other content ({standing.size} bytes); "
                "a name keeps one content: delete it first, or choose another name"
            )
        fresh = clock.next(above=standing.stamp)
        return _write(fresh) if deleted or damaged else _revise(fresh)
    order = _compare(standing, stamp, kind, checksum, metadata)
    if damaged and (same or order >= 0):
        return _write(stamp)
    if order <= 0:
        return _keep(standing, order)
    return _revise(stamp) if same else _write(stamp)


def judge_delete(
    standing: BlobInfo | None, *, damaged: bool = False, stamp: int | None, clock: Clock
) -> Verdict:
    """Decide a delete; raises what `check_delete` raises.

    A damaged tombstone is replaced by itself, as a damaged blob is.
    """
    check_delete(stamp)
    if stamp is None:
        return _write(clock.next(above=standing.stamp if standing else 0))
    if standing is None:
        return _write(stamp)
    order = _compare(standing, stamp, Kind.TOMBSTONE, NO_CHECKSUM, b"")
    return _write(stamp) if order > 0 or (damaged and not order) else _keep(standing, order)


def check_delete(stamp: int | None) -> None:
    """Raise `InvalidName` for a delete with the stamp 0, by which nobody could tell it happened."""
    if stamp == 0:
        raise InvalidName("a delete carries a stamp above 0")


def judge_touch(
    name: str,
    standing: BlobInfo | None,
    *,
    damaged: bool,
    checksum: bytes,
    metadata: bytes,
    stamp: int,
) -> Verdict:
    """Decide a touch; raises `NotFound` where there is nothing to touch.

    One of the rank that stands is written as well: it renews the time of arrival.
    """
    if (
        standing is None
        or damaged
        or standing.kind == Kind.TOMBSTONE
        or standing.checksum != checksum
    ):
        raise NotFound(
            f"{name} is not here with that checksum",
            stamp=standing.stamp if standing and standing.kind == Kind.TOMBSTONE else 0,
        )
    order = _compare(standing, stamp, standing.kind, checksum, metadata)
    return _revise(stamp) if order >= 0 else _keep(standing, order)


def may_remove(standing: BlobInfo | None, *, if_stamp: int, min_age: float, now: float) -> bool:
    """Whether this store's own copy may be dropped. `now` is in seconds since 1970."""
    return standing is not None and standing.stamp == if_stamp and now - standing.arrived >= min_age


def _compare(standing: BlobInfo, stamp: int, kind: int, checksum: bytes, metadata: bytes) -> int:
    """Above zero when the write outranks what stands, zero when it is the same write."""
    if stamp != standing.stamp:
        return 1 if stamp > standing.stamp else -1
    new, old = rank(stamp, kind, checksum, metadata), standing.rank
    return (new > old) - (new < old)


def _write(stamp: int) -> Verdict:
    return Verdict(Action.WRITE, Put(Outcome.CREATED, stamp))


def _revise(stamp: int) -> Verdict:
    return Verdict(Action.REVISE, Put(Outcome.UNCHANGED, stamp))


def _keep(standing: BlobInfo, order: int) -> Verdict:
    outcome = Outcome.SUPERSEDED if order else Outcome.UNCHANGED
    return Verdict(Action.KEEP, Put(outcome, standing.stamp))
