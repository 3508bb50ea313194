"""What works beside a server that has a volume: nobody else looks after one."""

from __future__ import annotations

from collections.abc import Sequence

from dolmen.config import Settings
from dolmen.servers.compacting import CompactingBeside
from dolmen.servers.running import Beside
from dolmen.servers.scrubbing import Scrubbing
from dolmen.stores.volume import path_of


def beside_volume(url: str, settings: Settings) -> Sequence[Beside]:
    """Its compaction and its scrub, where the store of a URL is a volume."""
    if not url.startswith("volume:"):
        return []
    beside: list[Beside] = [CompactingBeside(path_of(url), settings.compaction)]
    if settings.scrub.every_days:
        beside.append(Scrubbing(url, settings.scrub))
    return beside
