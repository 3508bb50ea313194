"""The sealed segments of a volume: which there are, how long, and from which sequence on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dolmen.errors import Corrupt
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.layout import Layout, segment_number
from dolmen.stores.volume.recovery import leftover_segments
from dolmen.stores.volume.segment import SEGMENT_HEADER, decode_header


class _Fixed(NamedTuple):
    """What never changes of a sealed segment."""

    size: int
    floor: int


class Sealed:
    """Looks at each file once. For one thread."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk, self._layout = disk, layout
        self._known: dict[int, _Fixed] = {}

    def sizes(self) -> dict[int, int]:
        """The length of every sealed segment, in bytes."""
        known = self._known
        found = list(self._numbers())
        self._known = {
            number: known.get(number) or self._look(self._layout.sealed_segment(number))
            for number in found
        }
        return {number: self._known[number].size for number in found}

    def floor_without(self, number: int) -> int:
        """No record in any other segment has a lower sequence than this."""
        # Those in `active/` first: one that is sealed meanwhile is seen in one of the two.
        floors = []
        for active in leftover_segments(self._disk, self._layout):
            try:
                floors.append(self._look(self._layout.active_segment(active)).floor)
            except FileNotFoundError:
                continue
        self.sizes()
        floors += [fixed.floor for other, fixed in self._known.items() if other != number]
        return min(floors, default=1 << 63)

    def _numbers(self) -> Iterator[int]:
        for folder in self._disk.names(self._layout.sealed):
            for name in self._disk.names(f"{self._layout.sealed}/{folder}"):
                number = segment_number(name)
                if number is not None:
                    yield number

    def _look(self, path: str) -> _Fixed:
        fd = self._disk.open(path)
        try:
            size = self._disk.size(fd)
            try:
                return _Fixed(size, decode_header(self._disk.read(fd, SEGMENT_HEADER, 0)).floor)
            except (Corrupt, OSError):
                return _Fixed(size, 0)
        finally:
            self._disk.close(fd)
