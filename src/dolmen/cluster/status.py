"""The status of a cluster: every server's state, and what it lacks of what it should hold.

What is missing is worked out from the servers' digests, without listing anything: in each
partition the fullest server says how much there is. So it is a lower bound, and one that
can't be asked is taken to hold nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.fan_out import each
from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Placement
from dolmen.stores.scrub import scrub_in

Counts = Mapping[int, int]
"""Entries by partition."""
PATIENCE = 10.0
"""Seconds for which a server's answers are waited for."""


async def cluster_status(cluster: Cluster) -> Sequence[dict[str, object]]:
    """Every group with its servers, as the API server says it."""
    states: dict[str, dict[str, object]] = {}
    counts: dict[str, Counts | None] = {}

    async def ask(member: Member) -> None:
        states[member.name], counts[member.name] = await _state_of(cluster, member)

    _, failures = await each(cluster.members, ask, PATIENCE)
    for name, error in failures:
        states[name], counts[name] = {"reachable": False, "detail": str(error)}, {}
    loop = asyncio.get_running_loop()
    places = await loop.run_in_executor(None, _places, cluster.placement, cluster.members, counts)

    def told(member: Member) -> dict[str, object]:
        stale = {"stale": member.stale} if member.stale is not None else {}
        return {
            "server": member.name,
            "weight": member.weight,
            "zone": member.zone,
            "state": cluster.breaker.state(member),
            **stale,
            **states[member.name],
            **places[member.name],
        }

    return [
        {
            "group": group.name,
            "copies": group.copies,
            "write_copies": group.write_copies,
            "min_copies": group.min_copies,
            "servers": [told(member) for member in group.members],
        }
        for group in cluster.groups
    ]


async def _state_of(cluster: Cluster, member: Member) -> tuple[dict[str, object], Counts | None]:
    """What a server says of itself, and the entries it has, where it can tell."""
    store = member.store
    condition = await store.condition()
    cluster.breaker.says(member, condition)
    said: dict[str, object] = {"reachable": True} | asdict(condition)
    if not store.capabilities.stamps:
        return said, None
    notes = await store.notes()
    scrub = scrub_in(notes)
    said["compared_at"] = _at(notes.get("compared"))
    said["scrubbed_at"] = scrub.last if scrub else None
    if not store.capabilities.digests:  # it would have to list everything
        return said, None
    digests = await store.digests()
    return said | {"blobs": digests.count, "bytes": digests.size}, digests.counts


def _at(note: bytes | None) -> object:
    try:
        return json.loads(note)["at"] if note else None
    except (ValueError, KeyError, TypeError):
        return None


def _places(
    placement: Placement, members: Sequence[Member], counts: Mapping[str, Counts | None]
) -> Mapping[str, dict[str, object]]:
    """By server: copies it lacks, and copies it should not hold; nothing where none can tell."""
    missing = dict.fromkeys(counts, 0)
    misplaced = dict.fromkeys(counts, 0)
    fullest: dict[int, int] = {}
    for held in counts.values():
        for partition, count in (held or {}).items():
            fullest[partition] = max(count, fullest.get(partition, 0))
    for partition, most in fullest.items():
        place = placement.of(partition)
        for member in members:
            held = counts[member.name]
            if held is None:
                continue
            count = held.get(partition, 0)
            if member in place.rightful:
                missing[member.name] += (most - count) * place.group.counts(member)
            else:
                misplaced[member.name] += count
    return {
        name: {} if held is None else {"missing": missing[name], "misplaced": misplaced[name]}
        for name, held in counts.items()
    }
