"""What it means when a Redis server answers with an error."""

from __future__ import annotations

from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.stores.redis.connection import Ask

_PASSING = (
    *("LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "MOVED", "ASK", "TRYAGAIN"),
    "ERR max number of clients",
)


class Refused(Unavailable):
    """The server said no, and will until something is set right."""


def meaning(where: str, ask: Ask, said: str) -> DolmenError:
    """The error for an ask that the server called `where` refused in these words.

    For a write it is `OutcomeUnknown` unless they say that nothing happened.
    """
    if said.startswith(_PASSING):
        return Unavailable(f"{where} can't do it now: {said}")
    if ask.refusal:
        return Refused(f"{where} {ask.refusal}")
    if said.startswith("OOM"):
        return Full(f"{where} has no memory left for this (maxmemory): {said}")
    if said.startswith(("READONLY", "MISCONF")):
        return ReadOnly(f"{where} takes no writes: {said}")
    if said.startswith(("NOAUTH", "NOPERM", "DENIED")):
        return Refused(f"{where} does not permit it; mend the user in the store's URL: {said}")
    return (OutcomeUnknown if ask.writes else Unavailable)(f"{where} answered: {said}")
