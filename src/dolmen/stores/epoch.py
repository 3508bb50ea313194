"""The configuration a store belongs to: the note by which another or an older one is told apart.

Servers that join, leave or change their weight change what every server should hold. Whoever
removes misplaced copies acts on a configuration. A store keeps the highest *epoch* it was given
with the fingerprint of that configuration and its own name in it, and refuses removals by a
lower epoch. Fingerprint and name are compared by everyone who may remove anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from dolmen.errors import Corrupt, Outdated
from dolmen.store import BlobStore

KEY = "configuration"
_LARGEST = 1 << 63


class Seen(NamedTuple):
    """An epoch, and a fingerprint of the configuration it is the number of."""

    epoch: int
    fingerprint: str


NOTHING = Seen(0, "")


def seen_in(notes: Mapping[str, bytes]) -> Seen:
    """The configuration in a store's notes, `NOTHING` for none. Raises `Corrupt`."""
    return _read(notes)[0]


def server_in(notes: Mapping[str, bytes]) -> str:
    """The name of the store in that configuration; empty for none. Raises `Corrupt`."""
    return _read(notes)[1]


def _read(notes: Mapping[str, bytes]) -> tuple[Seen, str]:
    noted = notes.get(KEY)
    if noted is None:
        return NOTHING, ""
    try:
        match json.loads(noted):
            case {"epoch": int(epoch), "fingerprint": str(fingerprint), "server": str(server)}:
                if 0 <= epoch < _LARGEST:
                    return Seen(epoch, fingerprint), server
    except (ValueError, RecursionError):
        pass
    raise Corrupt(f"the note {KEY!r} is damaged: it should hold epoch, fingerprint and server")


async def tell(store: BlobStore, seen: Seen, server: str = "") -> None:
    """Note a configuration, and the name of the store in it."""
    await store.note(KEY, json.dumps({**seen._asdict(), "server": server}).encode())


async def check_epoch(store: BlobStore, epoch: int) -> None:
    """Raise `Outdated` when the store has seen a higher epoch."""
    noted = seen_in(await store.notes()).epoch
    if noted > epoch:
        raise Outdated(
            f"it has seen epoch {noted} of the configuration, this is epoch {epoch}: "
            "use the newer configuration everywhere"
        )
