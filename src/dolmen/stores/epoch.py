"""The configuration a store has seen: the note by which an older one is told apart.

Servers that join, leave or change their weight change what every server should hold.
Whoever removes copies because they stand where they should not acts on a configuration,
and says by its *epoch* which. A store keeps the highest it was told of, and refuses
removals from a lower one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from dolmen.errors import Outdated
from dolmen.store import BlobStore

KEY = "configuration"


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


async def tell(store: BlobStore, seen: Seen) -> None:
    """Note a configuration."""
    await store.note(KEY, json.dumps(seen._asdict()).encode())


async def check_epoch(store: BlobStore, epoch: int) -> None:
    """Raise `Outdated` when the store has seen a higher epoch."""
    noted = seen_in(await store.notes()).epoch
    if noted > epoch:
        raise Outdated(
            f"it has seen epoch {noted} of the configuration, this is epoch {epoch}: "
            "use the newer configuration everywhere"
        )
