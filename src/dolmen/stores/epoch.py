"""The configuration a store has seen: the note by which an older one is told apart.

Servers that join, leave or change their weight change what every server should hold.
Whoever removes copies because they stand where they should not acts on a configuration,
and says by its *epoch* which. A store keeps the highest it was told of, and refuses
removals from a lower one. It also keeps under which name it is known there, by which two names
of one store are found out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from dolmen.errors import Outdated
from dolmen.store import BlobStore

KEY = "configuration"
_SERVER = "server"


class Seen(NamedTuple):
    """An epoch, and a fingerprint of the configuration it is the number of."""

    epoch: int
    fingerprint: str


NOTHING = Seen(0, "")


def seen_in(notes: Mapping[str, bytes]) -> Seen:
    """What the notes of a store say; `NOTHING` where nobody told it of any."""
    try:
        noted = json.loads(notes[KEY])
        return Seen(int(noted["epoch"]), str(noted["fingerprint"]))
    except (KeyError, TypeError, ValueError):
        return NOTHING


def server_in(notes: Mapping[str, bytes]) -> str:
    """The name of the store in the configuration it was told of last; empty where in none."""
    return notes.get(_SERVER, b"").decode("utf-8", "replace")


async def tell(store: BlobStore, seen: Seen, server: str = "") -> None:
    """Note a configuration, and the name of the store in it."""
    await store.note(_SERVER, server.encode())
    await store.note(KEY, json.dumps(seen._asdict()).encode())


async def check_epoch(store: BlobStore, epoch: int) -> None:
    """Raise `Outdated` when the store has seen a higher epoch."""
    noted = seen_in(await store.notes()).epoch
    if noted > epoch:
        raise Outdated(
            f"it has seen epoch {noted} of the configuration, this is epoch {epoch}: "
            "use the newer configuration everywhere"
        )
