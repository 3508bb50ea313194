"""From the groups that are set to groups of open stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Group, Member, make_group
from dolmen.config import settings
from dolmen.store import BlobStore
from dolmen.stores import open_existing, open_store


async def open_groups(
    groups: Sequence[settings.Group],
    *,
    volatile: bool = False,
    existing: bool = False,
    read_only: bool = False,
) -> Sequence[Group]:
    """Open every store of these groups; whoever gets them closes them.

    `volatile` lets a group pass that has no durable server. With `existing` no new volume is
    made, with `read_only` nothing is written at opening either. Raises `BadSetting` for
    numbers of copies that can't be kept, and what opening raises; nothing is left open then.
    """
    async with AsyncExitStack() as stack:

        async def member(server: settings.Server) -> Member:
            if existing or read_only:
                store = await open_existing(server.url, read_only=read_only)
            else:
                store = await open_store(server.url)
            stack.push_async_callback(store.aclose)
            return Member(server.name, store, server.weight, server.zone)

        ready = [
            make_group(
                group.name,
                [await member(server) for server in group.servers],
                copies=group.copies,
                write_copies=group.write_copies,
                min_copies=group.min_copies,
                volatile=volatile,
            )
            for group in groups
        ]
        stack.pop_all()
    return ready


@asynccontextmanager
async def opened_groups(
    groups: Sequence[settings.Group], *, existing: bool = False, read_only: bool = False
) -> AsyncIterator[Sequence[Group]]:
    """These groups, durable or not, open for as long as the context lasts (see `open_groups`)."""
    ready = await open_groups(groups, volatile=True, existing=existing, read_only=read_only)
    try:
        yield ready
    finally:
        for group in ready:
            for member in group.members:
                await member.store.aclose()


@asynccontextmanager
async def opened_store(
    groups: Sequence[settings.Group], *, read_only: bool = False
) -> AsyncIterator[BlobStore]:
    """The one store that these groups are: the cluster, or the only server."""
    async with opened_groups(groups, read_only=read_only) as ready:
        cluster = Cluster(ready)
        await cluster.leave_out_stale()
        yield cluster.members[0].store if len(cluster.members) == 1 else cluster
