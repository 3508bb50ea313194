"""Compaction by hand: at once, as fast as it goes, beside whatever else uses the volume."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import NamedTuple

from dolmen.errors import BadVolume
from dolmen.stores.volume.background import note_won
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.layout import Layout, prepare, usable
from dolmen.stores.volume.merge import Merge
from dolmen.stores.volume.opening import Membership


class Compacted(NamedTuple):
    """What was done so far. All but `segments`, which are gone, in bytes."""

    segments: int = 0
    won: int = 0
    carried: int = 0
    moved: int = 0
    """Read and written."""


def compact_by_hand(path: str, go_on: Callable[[Compacted], bool]) -> Compacted:
    """Compact the volume in a folder until `go_on`, called after every step, says no.

    Raises what `Compactor.steps` raises, and `BadVolume` where there is no volume.
    """
    disk = Disk()
    if not disk.exists(Layout(path).marker):
        raise BadVolume(f"{path} is no volume: name the folder that dolmen keeps one in")
    layout = prepare(disk, path)
    membership = Membership(disk, layout)
    done = Compacted()
    with ExitStack() as leaving:
        leaving.callback(membership.leave)
        with usable(path):
            membership.join()
        merge = Merge(disk, layout, membership.index, membership.recent)
        leaving.callback(merge.close)
        with closing(membership.compactor(merge).steps()) as steps:
            for step in steps:
                done = Compacted(
                    done.segments + bool(step.dropped),
                    done.won + step.dropped - step.carried,
                    done.carried + step.carried,
                    done.moved + step.moved,
                )
                if not go_on(done):
                    break
        if done.won:
            note_won(membership.index, done.won)
        merge.merge()  # seals what was written
    return done
