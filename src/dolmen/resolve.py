"""Which of two writes of one name wins: the rules of the contract, as pure functions.

**The newer stamp wins.** Every write carries a stamp (`dolmen.stamps`). Of two writes of
one name the one of the higher *rank* is current everywhere, in whatever order they arrive:
rank is (stamp, kind, checksum, hash of the metadata), compared in that order. So copies
converge.

An engine calls `resolve` inside whatever makes its decision atomic (a lock, a
transaction), with what is current, and then carries the decision out. Read first:
`dolmen.store`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from dolmen import metadata
from dolmen.errors import BadContent, Conflict, InvalidName, NotFound
from dolmen.names import CHECKSUM_SIZE, CHUNK_PREFIX, check_name, is_chunk_name
from dolmen.record import Kind
from dolmen.stamps import MAX_STAMP, Clock
from dolmen.store import IDENTITY, BlobInfo, Outcome, Put, Rank, Write


class Action(enum.Enum):
    """What the engine has to do."""

    KEEP = enum.auto()
    """Nothing."""
    WRITE = enum.auto()
    """Store the write whole, in place of what is there."""
    TOUCH = enum.auto()
    """Give the data that is there this stamp and metadata, once it was read and is sound.
    With the payload at hand, storing the write whole does as well. Without it, damage
    that is found now makes the answer `NotFound`."""


class Decision(NamedTuple):
    """What to do, and the answer to give once it is done."""

    action: Action
    put: Put


def check(write: Write) -> Write:
    """Return a write whose form is right; every engine calls this first.

    Raises `InvalidName` for a name, stamp or metadata that can't be, `TooLarge` for too
    much metadata, `BadContent` for what can't be stored under this name or as this kind.
    """
    check_name(write.name)
    metadata.check(write.metadata)
    stamp, kind = write.stamp, write.kind
    if stamp is not None and not 0 <= stamp <= MAX_STAMP:
        raise InvalidName(f"{stamp} is not a valid stamp")
    if kind == Kind.TOMBSTONE:
        if stamp == 0:
            raise InvalidName("a delete carries a stamp above 0")
        if write.metadata or write.payload.size:
            raise BadContent(f"a tombstone has neither data nor metadata; {write.name} has")
    elif kind == Kind.TOUCH:
        if stamp is None or write.checksum is None or write.payload.size:
            raise BadContent(f"a touch of {write.name} needs a stamp and a checksum, and no data")
    elif kind not in (Kind.BLOB, Kind.MANIFEST):
        raise BadContent(f"{kind} is not a kind of write")
    elif write.checksum is not None:
        check_content(write, write.checksum)
    return write


def check_content(write: Write, checksum: bytes) -> None:
    """Raise `BadContent` unless a blob or manifest with this checksum may have this name.

    A chunk's name holds the BLAKE3 of its data, of which the checksum is the first half;
    a manifest is never a chunk.
    """
    if write.checksum is not None and write.checksum != checksum:
        raise BadContent(f"the data of {write.name} does not have the announced checksum")
    if is_chunk_name(write.name):
        start = len(CHUNK_PREFIX)
        named = bytes.fromhex(write.name[start : start + 2 * CHECKSUM_SIZE])
        if write.kind != Kind.BLOB or checksum != named:
            raise BadContent(f"this is not the content that the name {write.name} stands for")


def check_key(key: str) -> str:
    """Return the key of a note that may be written; raises `InvalidName` for the identity's."""
    if key == IDENTITY:
        raise InvalidName("the identity of a store never changes")
    return key


def resolve(
    write: Write, current: BlobInfo | None, *, checksum: bytes, damaged: bool = False, clock: Clock
) -> Decision:
    """Decide a write against what is current.

    `checksum` is that of the write's data (`NO_CHECKSUM` for a tombstone, the write's own
    for a touch), `damaged` says that the current copy is quarantined. A damaged copy is
    replaced by the same content, whatever its stamp, and by what ranks at least as high;
    other content of a lower rank still loses to it, or a stale copy would be served in place
    of what was acknowledged. The same bytes of another kind count as other content:
    a manifest's, stored as a blob, would be served as the object.

    Raises `Conflict` for a put without a stamp onto other live content, `NotFound` for a
    touch of what is not there, `Unavailable` where no higher stamp can be given.
    """
    if write.kind == Kind.TOUCH:
        return _touch(write, current, damaged=damaged)
    stamp, kind = write.stamp, write.kind
    if current is None:
        return _write(clock.next() if stamp is None else stamp)
    tombstone = kind == Kind.TOMBSTONE
    same = current.checksum == checksum and current.kind == kind
    if stamp is None:
        if not (tombstone or same or current.kind == Kind.TOMBSTONE):
            raise Conflict(
                f"{write.name} already holds other content ({current.size} bytes); "
                "a name keeps one content: delete it first, or choose another name"
            )
        stamp = clock.next(above=current.stamp)
        return _write(stamp) if tombstone or damaged or not same else _unchanged(stamp)
    order = _order(write, kind, checksum, current)
    if damaged and (order >= 0 or (same and not tombstone)):
        return _write(stamp)
    if order < 0:
        return _superseded(current)
    if tombstone:
        return _write(stamp) if order else Decision(Action.KEEP, Put(Outcome.UNCHANGED, stamp))
    return _unchanged(stamp) if same else _write(stamp)


def may_remove(current: BlobInfo | None, *, if_stamp: int, min_age: float, now: float) -> bool:
    """Whether a store's own copy may be dropped. `now` is in seconds since 1970."""
    if current is None or current.stamp != if_stamp:
        return False
    # Of any age means any: the clock may have been set back since it arrived.
    return min_age <= 0 or now - current.arrived >= min_age


def _touch(write: Write, current: BlobInfo | None, *, damaged: bool) -> Decision:
    assert write.stamp is not None
    assert write.checksum is not None
    deleted = current is not None and current.kind == Kind.TOMBSTONE
    if current is None or damaged or deleted or current.checksum != write.checksum:
        raise NotFound(
            f"{write.name} is not here with that checksum",
            stamp=current.stamp if current is not None and deleted else 0,
        )
    order = _order(write, current.kind, write.checksum, current)
    return _unchanged(write.stamp) if order >= 0 else _superseded(current)


def _order(write: Write, kind: int, checksum: bytes, current: BlobInfo) -> int:
    """Above zero when the write outranks what is current, zero when it is the same write."""
    assert write.stamp is not None
    if write.stamp != current.stamp:
        return 1 if write.stamp > current.stamp else -1
    new = Rank(write.stamp, kind, checksum, metadata.hash_of(write.metadata))
    old = current.rank
    return (new > old) - (new < old)


def _write(stamp: int) -> Decision:
    return Decision(Action.WRITE, Put(Outcome.CREATED, stamp))


def _unchanged(stamp: int) -> Decision:
    return Decision(Action.TOUCH, Put(Outcome.UNCHANGED, stamp))


def _superseded(current: BlobInfo) -> Decision:
    return Decision(Action.KEEP, Put(Outcome.SUPERSEDED, current.stamp))
