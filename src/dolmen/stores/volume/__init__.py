"""The volume: the embedded default store, a folder of segments with an index beside them."""

from __future__ import annotations

import os

from dolmen.errors import BadSetting, BadVolume
from dolmen.stores.volume.volume import Volume, open_volume

__all__ = ["Volume", "check_there", "open_url", "open_volume", "path_of"]


async def open_url(url: str) -> Volume:
    """Open `volume:/path` (or `volume:relative/path`)."""
    return await open_volume(path_of(url))


def check_there(url: str) -> None:
    """Raise `BadVolume` where opening would make a new volume."""
    path = path_of(url)
    if not os.path.exists(os.path.join(path, "dolmen-volume")):
        raise BadVolume(f"there is no volume in {path}: check the path")


def path_of(url: str) -> str:
    """The folder that a URL names; raises `BadSetting` where it names none."""
    path = url.removeprefix("volume:").removeprefix("//")
    if not path:
        raise BadSetting(f"{url!r} names no folder: write volume:/path/to/folder")
    return path
