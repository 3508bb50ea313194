"""The volume: the embedded default store, a folder of segments with an index beside them."""

from __future__ import annotations

from dolmen.errors import BadSetting
from dolmen.stores.volume.volume import VolumeStore, open_volume

__all__ = ["VolumeStore", "open_url", "open_volume"]


async def open_url(url: str) -> VolumeStore:
    """Open `volume:/path` (or `volume:relative/path`)."""
    path = url.removeprefix("volume:").removeprefix("//")
    if not path:
        raise BadSetting(f"{url!r} names no folder: write volume:/path/to/folder")
    return await open_volume(path, apart=True)
