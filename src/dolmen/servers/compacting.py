"""Compaction beside a server: a companion that gives back what was deleted, little by little.

It opens the volume by itself and looks once a minute, for as long as the server lives. What it
says is JSON: the fields of `dolmen.stores.volume.compaction.Compaction`.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import lmdb

from dolmen import config
from dolmen.companion import order, say
from dolmen.errors import Busy, DolmenError
from dolmen.pace import Pace, give_way
from dolmen.servers.metrics import Figure
from dolmen.stores.volume.compaction import Compacted, Compacting

_EVERY = 60.0
"""Seconds from the end of one pass to the next."""
_SAY_EVERY = 2.0


class CompactingBeside:
    """The companion, as `dolmen.servers.running` starts it, for the volume in a folder."""

    module = __name__

    def __init__(self, path: str, settings: config.Compaction) -> None:
        self._path = path
        self.order = json.dumps({"path": path} | settings.model_dump())

    def figures(self, said: str) -> Iterator[Figure]:
        """Its metrics."""
        told: dict[str, Any] = json.loads(said) if said else {}
        at = "volume", self._path
        text = "Room given back to the disk."
        yield Figure("counter", "dolmen_compaction_won_bytes", text, *at, told.get("won", 0))
        text = "When compaction last looked at everything, in seconds since 1970; 0: never."
        name = "dolmen_compaction_last_complete_seconds"
        yield Figure("gauge", name, text, *at, told.get("looked") or 0)
        text = "1 when the last pass was broken off."
        yield Figure("gauge", "dolmen_compaction_failing", text, *at, bool(told.get("failing")))
        text = "Room on the disk in which nothing stands."
        name = "dolmen_volume_reclaimable_bytes"
        yield Figure("gauge", name, text, *at, told.get("reclaimable", 0))


def main() -> None:
    """Compact the volume it is told of, until standard input ends."""
    told = json.loads(order())
    give_way()
    pace = Pace(told["bandwidth"])
    while True:
        try:
            with Compacting(told["path"]) as volume:
                while not _ended(_pass(volume, pace)):
                    pass
                return
        except (DolmenError, OSError, lmdb.Error) as error:
            say(f"!{error}")
        if _ended(_EVERY):
            return


def _pass(volume: Compacting, pace: Pace) -> float:
    """Compact what is worth it; returns the seconds to the next time."""
    before = Compacted()
    spoken = time.monotonic()

    def go_on(done: Compacted) -> bool:
        nonlocal before, spoken
        wait = pace.delay(done.moved - before.moved)
        before = done
        if time.monotonic() - spoken >= _SAY_EVERY:
            spoken = time.monotonic()
            known = volume.known()
            say(json.dumps(asdict(known) | {"won": known.won + done.won}))
        return not (_ended(wait) or volume.wanted_at_once())

    try:
        volume.compact(go_on)
    except Busy:
        pass
    except (DolmenError, OSError, lmdb.Error) as error:
        say(f"!{error}")
    say(json.dumps(asdict(volume.known())))
    return _EVERY


def _ended(wait: float) -> bool:
    """Whether standard input ended, which is waited for so many seconds."""
    return bool(select.select([sys.stdin], [], [], wait)[0])
