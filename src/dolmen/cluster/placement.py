"""Placement: for every partition an order of all servers, computed, the same everywhere.

Weighted rendezvous hashing (Thaler and Ravishankar 1996; with weights as
-w / ln u, Schindelhauer and Schomaker 2005): every server draws a number u from a hash
of the partition and its name, and the highest score comes first. First the groups are
ordered in this way, then the servers within each. A server that joins or leaves
moves only the partitions it wins or held; one with a weight of 0 should hold none.
Nothing is stored, nobody is asked.

Read first: `dolmen.cluster.groups`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from blake3 import blake3

from dolmen.cluster.groups import Group, Member


class Place:
    """Where the blobs of one partition go."""

    __slots__ = ("again", "group", "order", "rightful")

    def __init__(self, group: Group, rightful: Sequence[Member], others: Sequence[Member]) -> None:
        self.group = group
        """The group that holds them."""
        self.rightful = tuple(rightful)
        """The servers that should hold a copy, and those not durable that are ranked among them."""
        self.order = (*rightful, *others)
        """All servers: first the rightful ones, then every other one."""
        self.again = self.rightful if others else ()
        """The rightful servers, asked again before answering `NotFound`: after this read had asked
        them, repair may have copied the blob to them and removed it elsewhere."""


class Placement:
    """The places of all partitions, each worked out when it is first asked for."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        self._places: dict[int, Place] = {}

    def of(self, partition: int) -> Place:
        """The place of a partition."""
        place = self._places.get(partition)
        if place is None:
            place = self._places[partition] = self._work_out(partition)
        return place

    def place_of(self, name: str) -> Place:
        """The place of a blob: that of `names.partition_of(name)`, for names of any form."""
        partition = zlib.crc32(name.encode("utf-8", "surrogatepass")) >> 16
        return self._places.get(partition) or self.of(partition)

    def _work_out(self, partition: int) -> Place:
        groups: Sequence[Group] = self.groups
        if len(groups) > 1:
            groups = sorted(
                groups,
                key=lambda group: score(partition, f"group/{group.name}", group.weight),
                reverse=True,
            )
        rightful: list[Member] = []
        others: list[Member] = []
        for group in groups:
            ranked = sorted(
                group.members,
                key=lambda member: score(partition, f"server/{member.name}", member.weight),
                reverse=True,
            )
            first = _first(ranked, group)
            if group is groups[0]:
                rightful = first
            else:
                others += first
            others += [member for member in ranked if member not in first]
        return Place(groups[0], rightful, others)


def score(partition: int, name: str, weight: float) -> float:
    """How much a server wants a partition; above zero."""
    drawn = int.from_bytes(blake3(f"{partition}/{name}".encode()).digest(8), "big")
    return -weight / math.log((drawn + 0.5) / 2**64)


def _first(ranked: list[Member], group: Group) -> list[Member]:
    """The first of a ranking, until there are the group's copies.

    Copies are spread over as many zones as possible; a server without a zone counts as a zone by
    itself. One without a weight is never among them.
    """
    ranked = [member for member in ranked if member.weight]
    first: list[Member] = []
    zones: set[str] = set()
    copies = 0
    for member in ranked:
        if copies == group.copies:
            break
        if not group.counts(member):
            first.append(member)
        elif member.zone is None or member.zone not in zones:
            first.append(member)
            copies += 1
            if member.zone is not None:
                zones.add(member.zone)
    for member in ranked:  # where there are fewer zones than copies
        if copies == group.copies:
            break
        if member not in first:
            first.append(member)
            copies += 1
    return first
