"""From the groups that are set to groups of open stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from dolmen.cluster.groups import Group, Member, make_group
from dolmen.config import settings
from dolmen.stores import open_existing, open_store


async def open_groups(
    groups: Sequence[settings.Group], *, volatile: bool = False, existing: bool = False
) -> Sequence[Group]:
    """Open every store of these groups; whoever gets them closes them.

    `volatile` lets a group pass that has no durable server: what may be written to is for
    whoever writes there to decide. With `existing` no new volume is made. Raises `BadSetting` for
    numbers of copies that can't be kept, and what opening raises; nothing is left open then.
    """
    async with AsyncExitStack() as stack:
        ready = []
        for group in groups:
            members = []
            for server in group.servers:
                store = (
                    await open_existing(server.url, read_only=False)
                    if existing
                    else await open_store(server.url)
                )
                stack.push_async_callback(store.aclose)
                members.append(Member(server.name, store, server.weight, server.zone))
            ready.append(
                make_group(
                    group.name,
                    members,
                    copies=group.copies,
                    write_copies=group.write_copies,
                    min_copies=group.min_copies,
                    volatile=volatile,
                )
            )
        stack.pop_all()
    return ready


@asynccontextmanager
async def opened_groups(
    groups: Sequence[settings.Group], *, volatile: bool = False, existing: bool = False
) -> AsyncIterator[Sequence[Group]]:
    """These groups, open for as long as the context lasts."""
    ready = await open_groups(groups, volatile=volatile, existing=existing)
    try:
        yield ready
    finally:
        for group in ready:
            for member in group.members:
                await member.store.aclose()
