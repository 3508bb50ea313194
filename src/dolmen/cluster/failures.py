"""Members that failed, by name, and the errors made of them."""

from __future__ import annotations

from typing import NoReturn

from dolmen.cluster.groups import Member
from dolmen.errors import DolmenError, NotFound, Unavailable

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
