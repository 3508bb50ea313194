"""Bring every server of a cluster to what it should hold, by `replicate` between pairs.

Read first: `dolmen.replication.replicate`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from functools import partial

from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Placement
from dolmen.digests import Digests
from dolmen.errors import DolmenError, ReadOnly
from dolmen.pace import Pace
from dolmen.replication.replicate import replicate
from dolmen.replication.report import PairProgress, Round
from dolmen.store import ALL_PARTITIONS, BlobStore
from dolmen.stores.retrying import Pause, Retrying, ServerFailed


async def replicate_group(
    stores: Mapping[str, BlobStore],
    *,
    wanted: Mapping[str, Container[int]] | None = None,
    parallel: int = 1,
    progress: PairProgress | None = None,
    pace: Pace | None = None,
    pause: Pause = asyncio.sleep,
) -> Round:
    """Copy from every server to every other one what that one should hold.

    One round is enough: what is on any server goes from there to all others directly, so a
    server that fails or refuses something is in nobody else's way. Servers in sync cost a
    request each. Runs that need a server that failed are not begun; one that only takes no
    writes is copied from all the same.

    `wanted` gives the partitions a server should hold, by its name; without it every server
    holds all. Any server may be the source, also of what it should no longer hold. `parallel`
    servers are copied to at once, each from one other after the other, so that nothing goes to
    it twice; `pace` bounds all of them together. Must run in a task.
    """
    report = Round()
    silent: set[str] = set()
    digests: dict[str, Digests | None] = {}
    free = asyncio.Semaphore(parallel)

    async def look(name: str, store: BlobStore) -> None:
        digests[name] = None
        if store.capabilities.digests and store.capabilities.stamps:
            try:
                digests[name] = await Retrying(store, name, pause=pause).digests()
            except ServerFailed as failed:
                fail(name, failed.error)

    def fail(name: str, error: DolmenError) -> None:
        report.failing[name] = str(error)
        if not isinstance(error, ReadOnly):
            silent.add(name)

    async def fill(target: str) -> None:
        partitions = wanted[target] if wanted is not None else ALL_PARTITIONS
        async with free:
            for origin in stores:
                if origin == target or origin in silent or target in report.failing:
                    continue
                if not _may_differ(digests[origin], digests[target], partitions):
                    continue
                run = report.runs[origin, target] = await replicate(
                    stores[origin],
                    stores[target],
                    partitions=partitions,
                    progress=progress and partial(progress, origin, target),
                    pace=pace,
                    pause=pause,
                )
                if run.stopped:
                    fail(origin if run.failing == "source" else target, run.stopped)

    async with asyncio.TaskGroup() as looking:
        for name, store in stores.items():
            looking.create_task(look(name, store))
    async with asyncio.TaskGroup() as filling:
        for target in stores:
            filling.create_task(fill(target))
    return report


def _may_differ(ours: Digests | None, theirs: Digests | None, partitions: Container[int]) -> bool:
    """Whether the source had anything in these partitions that the destination may have lacked.

    What an earlier run brought to either of them is also on the server it came from, and goes
    from there.
    """
    if ours is None or theirs is None:
        return True
    held = ours.counts
    return any(at in partitions and at in held for at in ours.differing(theirs))


class Rightful(Container[int]):
    """The partitions a server should hold, each worked out when it is asked for."""

    def __init__(self, name: str, placement: Placement) -> None:
        self._name, self._placement = name, placement

    def __contains__(self, partition: object) -> bool:
        assert isinstance(partition, int)
        return any(each.name == self._name for each in self._placement.of(partition).rightful)


def partitions_of(placement: Placement) -> dict[str, Container[int]]:
    """The partitions each server of a cluster should hold, by the server's name."""
    groups = placement.groups
    members = [member for group in groups for member in group.members]
    if len(groups) == 1 and groups[0].copies == len(members):
        return {member.name: ALL_PARTITIONS for member in members}
    return {member.name: Rightful(member.name, placement) for member in members}


def strays(placement: Placement, member: Member, held: Digests) -> list[int]:
    """The partitions of which a server holds something and should not, ascending."""
    return [at for at in held.counts if member not in placement.of(at).rightful]
