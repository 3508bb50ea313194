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
from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Placement
from dolmen.errors import DolmenError
from dolmen.stores.scrub import scrub_in

Counts = Mapping[int, int]
"""Entries by partition."""
PATIENCE = 10.0
"""Seconds for which a server's answers are waited for."""


async def cluster_status(cluster: Cluster) -> Sequence[dict[str, object]]:
    """Every group with its servers, as the API server says it."""
    answers = await asyncio.gather(*(_of_server(cluster, member) for member in cluster.members))
    states = {member.name: said for member, (said, _) in zip(cluster.members, answers, strict=True)}
    counts = {member.name: held for member, (_, held) in zip(cluster.members, answers, strict=True)}
    loop = asyncio.get_running_loop()
    places = await loop.run_in_executor(None, _places, cluster.placement, cluster.members, counts)
    return [
        {
            "group": group.name,
            "copies": group.copies,
            "write_copies": group.write_copies,
            "min_copies": group.min_copies,
            "servers": [
                {"server": member.name, "weight": member.weight, "zone": member.zone}
                | states[member.name]
                | places[member.name]
                for member in group.members
            ],
        }
        for group in cluster.groups
    ]


async def _of_server(cluster: Cluster, member: Member) -> tuple[dict[str, object], Counts | None]:
    state: dict[str, object] = {"state": cluster.breaker.state(member)}
    if member.stale is not None:
        state["stale"] = member.stale
    try:
        async with asyncio.timeout(PATIENCE):
            return await _answers_of(cluster, member, state)
    except TimeoutError:
        why = f"it did not answer within {PATIENCE:.0f} seconds"
    except DolmenError as error:
        why = str(error)
    return {"reachable": False} | state | {"detail": why}, {}


async def _answers_of(
    cluster: Cluster, member: Member, state: dict[str, object]
) -> tuple[dict[str, object], Counts | None]:
    store = member.store
    condition = await store.condition()
    cluster.breaker.says(member, condition)
    said: dict[str, object] = {"reachable": True} | state | asdict(condition)
    if not store.capabilities.stamps:
        return said, None
    notes = await store.notes()
    said["compared_at"] = _at(notes.get("compared"))
    scrub = scrub_in(notes)
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
