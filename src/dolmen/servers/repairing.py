"""Repair beside an API server: a companion that keeps the cluster at what it should hold.

It says a line of JSON after every round, and once a second while it copies: the totals
since it began, and how the last round went (`Told`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Literal

import uvloop

from dolmen import config
from dolmen.companion import order, say
from dolmen.config.opening import opened_groups
from dolmen.errors import DolmenError
from dolmen.replication.repair import DAY, Repair, Terms, watch
from dolmen.replication.report import Report, Round
from dolmen.servers.metrics import Figure
from dolmen.stores.epoch import Seen
from dolmen.stores.secrets import without_secrets

_AGAIN = 60.0
"""Seconds before a repair that can't be is begun again."""
_FIGURES: Sequence[tuple[Literal["counter", "gauge"], str, str, str]] = (
    ("counter", "rounds", "rounds", "Rounds of repair."),
    ("counter", "copied", "copied", "Copies made of what a server lacked."),
    ("counter", "bytes", "bytes", "Bytes in copies made."),
    ("counter", "deletes", "deletes", "Deletes carried to servers that had missed them."),
    (
        "counter",
        "removed",
        "removed",
        "Misplaced copies removed once the rightful ones were verified.",
    ),
    ("counter", "purged", "purged", "Deletes forgotten after their time."),
    ("gauge", "refused", "refused", "Copies the last round could not make."),
    ("gauge", "misplaced", "kept", "Misplaced copies the last round left."),
    ("gauge", "failing_servers", "failing", "Servers the last round could not use."),
    ("gauge", "complete", "complete", "1 when the last round left everything in its place."),
    ("gauge", "last_round_seconds", "ended", "When the last round ended, in seconds since 1970."),
)
"""Kind, name, what of `Told` it is, help."""


@dataclass(slots=True)
class Told:
    """What a repair did since it began, and how its last round ended."""

    rounds: int = 0
    copied: int = 0
    bytes: int = 0
    deletes: int = 0
    removed: int = 0
    purged: int = 0
    refused: int = 0
    """Copies the last round could not make."""
    kept: int = 0
    """Misplaced copies it left, as others lacked them."""
    failing: dict[str, str] = field(default_factory=dict)
    """Servers it could not use, and why."""
    stale: dict[str, str] = field(default_factory=dict)
    """Those among them that missed a purge: nothing may be read from them."""
    complete_rounds: int = 0
    """Rounds that left all in its place."""
    complete: bool = False
    """Whether all was in its place when it ended."""
    ended: float = 0.0
    """When it did, in seconds since 1970."""
    trouble: str | None = None
    """Why there can be no round at all."""
    copying: str | None = None
    """What is being copied now, from where to where."""

    def add(self, done: Round) -> None:
        """Take in a round."""
        runs, dropped = done.runs.values(), done.dropped.values()
        self.rounds += 1
        self.copied += sum(run.copied + run.touched for run in runs)
        self.bytes += sum(run.bytes for run in runs)
        self.deletes += sum(run.tombstones for run in runs)
        self.removed += sum(each.removed for each in dropped)
        self.purged += done.purged
        self.refused = sum(why.count for run in runs for why in run.refused.values())
        self.kept = sum(each.kept for each in dropped)
        self.failing = {name: without_secrets(why) for name, why in done.failing.items()}
        self.stale = done.stale
        self.complete, self.ended, self.copying = done.complete, round(time.time(), 3), None
        self.complete_rounds += done.complete
        self.trouble = None


class Repairing:
    """The companion, as `dolmen.servers.running` starts it."""

    module = __name__

    def __init__(self, settings: config.Settings) -> None:
        self.order = settings.model_dump_json()

    def figures(self, said: str) -> Iterator[Figure]:
        """Its metrics."""
        told = json.loads(said) if said else asdict(Told())
        for kind, name, field_of, text in _FIGURES:
            value = told[field_of]
            number = len(value) if isinstance(value, dict) else value
            yield Figure(kind, f"dolmen_repair_{name}", text, "", "", number)


def main() -> None:
    """Repair as the settings say that it is told, until standard input ends."""
    settings = config.Settings.model_validate_json(order())
    with suppress(asyncio.CancelledError):
        uvloop.run(_until_input_ends(settings))


async def _until_input_ends(settings: config.Settings) -> None:
    task = asyncio.ensure_future(_go_on(settings))
    asyncio.get_running_loop().add_reader(0, task.cancel)
    await task


async def _go_on(settings: config.Settings) -> None:
    told = Told()
    while True:
        try:
            await _repair(settings, told)
        except DolmenError as error:
            told.trouble, told.complete, told.copying = without_secrets(str(error)), False, None
            say(json.dumps(asdict(told)))
        await asyncio.sleep(_AGAIN)


async def _repair(settings: config.Settings, told: Told) -> None:
    limits = settings.replication
    terms = Terms(limits.bandwidth, limits.parallel, limits.reclaim_days * DAY)
    spoken = 0.0

    def progress(source: str, destination: str, run: Report) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= 1:
            spoken = time.monotonic()
            told.copying = f"{source} to {destination}: {run.copied:,} of {run.total or 0:,}"
            say(json.dumps(asdict(told)))

    async with opened_groups(settings.all_groups()) as groups:
        seen = Seen(settings.epoch, settings.fingerprint())
        async for done in watch(Repair(groups, seen, terms, progress=progress)):
            told.add(done)
            say(json.dumps(asdict(told)))
