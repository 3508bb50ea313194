"""Compaction of a volume that this very process has open as a store."""

from __future__ import annotations

from dolmen.stores.volume import VolumeStore
from dolmen.stores.volume.compact import Compactor


def compactor_of(store: VolumeStore, *, segment_size: int) -> Compactor:
    """What compacts it, with the store's own index and merge."""
    return Compactor(
        store._disk,  # noqa: SLF001 - a store does not compact itself
        store._layout,  # noqa: SLF001
        store._index,  # noqa: SLF001
        store._recent,  # noqa: SLF001
        store._merge,  # noqa: SLF001
        store._recover_dead,  # noqa: SLF001
        segment_size=segment_size,
    )
