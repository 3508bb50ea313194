"""Groups and their members: what a configuration says of a cluster; and members that failed.

Read first: `dolmen.store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from dolmen.errors import BadSetting, DolmenError, NotFound, Unavailable
from dolmen.store import BlobStore


@dataclass(slots=True, eq=False)
class Member:
    """A server of a group. `name` and `weight` decide placement; the store may move."""

    name: str
    store: BlobStore
    weight: float = 1.0
    zone: str | None = None
    stale: str | None = None
    """Why this server can't be trusted: it missed a purge of tombstones. Replication sets it.
    Nothing is read from a stale server or written to it, and its "no" counts for nothing."""


@dataclass(frozen=True, slots=True)
class Group:
    """Servers that hold copies of the same objects.

    `copies` is how many servers an object should be on, `write_copies` how many are
    written before an upload is answered, `min_copies` with how few it still succeeds.
    """

    name: str
    members: Sequence[Member]
    copies: int
    write_copies: int
    min_copies: int
    volatile: bool = False
    """None of its servers is durable, so all of them count."""

    def counts(self, member: Member) -> bool:
        """Whether what this member says it keeps is a copy: it would survive a power cut."""
        return self.volatile or member.store.capabilities.durable

    @property
    def weight(self) -> float:
        """Its share of the objects of a cluster with several groups."""
        return sum(member.weight for member in self.members)


def make_group(
    name: str,
    members: Sequence[Member],
    *,
    copies: int | None = None,
    write_copies: int | None = None,
    min_copies: int | None = None,
    volatile: bool = False,
) -> Group:
    """A group with the defaults: a copy on every server, two written, one needed.

    Stores that are not durable (memory, memcached) never count as a copy; a group of
    nothing else is refused unless `volatile` asks for it outright. Raises
    `BadSetting` for numbers that can't be kept.
    """
    durable = sum(member.store.capabilities.durable for member in members)
    if not durable and not volatile:
        raise BadSetting(
            f"group {name!r} has no durable server: nothing in it would survive a restart; "
            "add a blob server on a volume"
        )
    # Those without a weight should hold nothing; a group of nothing else only takes deletes.
    holding = [member for member in members if member.weight] or members
    counted = sum(each.store.capabilities.durable for each in holding) if durable else len(holding)
    copies = counted if copies is None else copies
    write_copies = min(2, copies) if write_copies is None else write_copies
    min_copies = 1 if min_copies is None else min_copies
    if not 1 <= min_copies <= write_copies <= copies <= counted:
        raise BadSetting(
            f"group {name!r}: min_copies ({min_copies}), write_copies ({write_copies}) and copies "
            f"({copies}) must each be no more than the next, and copies no more than its "
            f"{counted} durable servers with a weight"
        )
    return Group(name, tuple(members), copies, write_copies, min_copies, not durable)


Failures = list[tuple[str, DolmenError]]
"""Members by name, and how they failed."""


def stale(member: Member) -> Unavailable:
    """Why a stale member is not asked."""
    return Unavailable(
        f"it is stale and not used ({member.stale}); empty it, or run `dolmen rejoin {member.name}`"
    )


def fail(what: str, failures: Failures) -> NoReturn:
    """Raise for members that failed; `NotFound` when all of them said so."""
    if failures and all(isinstance(error, NotFound) for _, error in failures):
        raise failures[0][1]
    raise Unavailable(f"{what} ({in_words(failures)})")


def in_words(failures: Failures) -> str:
    """What the members that failed said, in one line."""
    return "; ".join(f"{member}: {error}" for member, error in failures)
