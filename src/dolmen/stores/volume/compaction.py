"""A volume that is opened to be compacted: by hand, or by the companion of a server.

How it went is noted in the volume, for whoever looks, in JSON: the fields of `Compaction`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import lmdb

from dolmen.errors import BadVolume, Busy, DolmenError
from dolmen.stores.volume.carry import Step
from dolmen.stores.volume.compact import Compactor
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.layout import Layout, prepare, usable
from dolmen.stores.volume.merge import Merge
from dolmen.stores.volume.opening import Membership

KEY = "compaction"
"""Of the note."""
_TURN = 0.02
"""Seconds between two looks whether another process has left off."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """How the compaction of a volume is doing. Sizes in bytes."""

    looked: float | None = None
    """When a pass last came to its end, in seconds since 1970."""
    won: int = 0
    """In all passes ever."""
    reclaimable: int = 0
    """What nothing stands in, of the sealed segments, after that pass."""
    failing: str | None = None
    """Why the last pass did not come to its end."""


def compaction_in(notes: Mapping[str, bytes]) -> Compaction | None:
    """What a store's notes tell; None where it was never compacted, or is no volume."""
    try:
        return Compaction(**json.loads(notes[KEY]))
    except (KeyError, ValueError, TypeError):
        return None


class Compacted(NamedTuple):
    """What a pass has done so far. All but `segments`, which are gone, in bytes."""

    segments: int = 0
    won: int = 0
    carried: int = 0
    moved: int = 0
    """Read and written."""


class Compacting(ExitStack):
    """A context in which the volume in a folder is open. For one thread.

    Raises `BadVolume` where there is no volume.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        disk = Disk()
        if not disk.exists(Layout(path).marker):
            raise BadVolume(f"{path} is no volume: name the folder that dolmen keeps one in")
        layout = prepare(disk, path)
        with ExitStack() as leaving:
            membership = Membership(disk, layout)
            leaving.callback(membership.leave)
            with usable(path):
                membership.join()
            self._merge = Merge(disk, layout, membership.index, membership.recent)
            leaving.callback(self._merge.close)
            self._index = membership.index
            self._compactor = Compactor(
                disk,
                layout,
                membership.index,
                membership.recent,
                self._merge,
                membership.recover_dead,
            )
            self.push(leaving.pop_all())

    def compact(self, go_on: Callable[[Compacted], bool], *, at_once: bool = False) -> Compacted:
        """Compact what is worth it until `go_on`, called after every step, says no.

        Raises what `Compactor.steps` raises.
        """
        done = Compacted()
        whole = False
        try:
            with closing(self._compactor.steps(at_once=at_once)) as steps:
                for step in steps:
                    if step == Step():
                        time.sleep(_TURN)
                    done = Compacted(
                        done.segments + bool(step.dropped),
                        done.won + step.dropped - step.carried,
                        done.carried + step.carried,
                        done.moved + step.moved,
                    )
                    if not go_on(done):
                        break
                else:
                    whole = True
            self._merge.merge()  # seals what was written
        except Busy:
            raise
        except (DolmenError, OSError, lmdb.Error) as error:
            with suppress(OSError, lmdb.Error):
                self._note(done.won, failing=str(error))
            raise
        self._note(done.won, whole=whole)
        return done

    def wanted_at_once(self) -> bool:
        """Whether another process waits to compact at once."""
        return self._compactor.wanted_at_once()

    def known(self) -> Compaction:
        """What is noted."""
        return compaction_in(self._index.notes()) or Compaction()

    def _note(self, won: int, *, whole: bool = False, failing: str | None = None) -> None:
        before = self.known()
        after = replace(
            before,
            won=before.won + won,
            reclaimable=self._compactor.reclaimable(),
            failing=failing,
        )
        if whole:
            after = replace(after, looked=time.time())
        if after != before:
            self._index.note(KEY, json.dumps(asdict(after)).encode())
