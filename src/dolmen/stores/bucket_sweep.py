"""The sweep: what was outranked, or is data without a head, goes after a day.

Any number of processes may sweep at once. Why it takes nothing that somebody needs is said in
`dolmen.stores.bucket`. Read that first.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from dolmen.closing import closing
from dolmen.errors import DolmenError
from dolmen.stores.bucket_client import PAGE, Client, Found
from dolmen.stores.bucket_layout import GRACE, by_name, heads_of

FIRST, _NEXT = 60, 3600
"""Seconds after which an open store looks whether a sweep is due."""
_SWEPT = "swept"
"""An object that was last written when a sweep began."""
_log = logging.getLogger("dolmen.bucket")


async def sweep_again(client: Client) -> float:
    """Sweep if it is due; returns when to look again, in seconds."""
    try:
        await sweep_if_due(client)
    except DolmenError as error:
        _log.warning("outdated data could not be deleted: %s", error)
    return _NEXT


async def sweep_if_due(client: Client) -> None:
    """Sweep, unless a sweep began within a day, in whichever process."""
    now = await client.now(fresh=True)
    swept = await client.modified(_SWEPT)
    if swept is not None and now - swept < GRACE:
        return
    await client.put(_SWEPT, b"")
    try:
        await _sweep(client, now)
    except DolmenError:
        await client.delete([_SWEPT])
        raise


async def _sweep(client: Client, now: float) -> None:
    """Delete what was outranked or abandoned a day before `now`, the bucket's time until lately."""
    gone: list[str] = []
    async with closing(_side_by_side(client)) as names:
        async for objects, parts in names:
            gone += _gone(objects, parts, now)
            if len(gone) >= PAGE:
                await client.delete(gone)
                gone = []
    await client.delete(gone)


def _gone(objects: Sequence[Found], parts: Sequence[Found], now: float) -> list[str]:
    """Of the heads, marks and parts of one name, the paths of those to be deleted."""
    heads = heads_of(objects)
    old = [number for number, head in enumerate(heads) if now - head.arrived >= GRACE]
    outranked = old[-1] if old else 0
    gone = [head.path for head in heads[:outranked]]
    present = {found.path for found in objects}.difference(gone)
    gone += [path for path in present if path.endswith("!") and path[:-1] not in present]
    uploads: defaultdict[str, list[Found]] = defaultdict(list)
    for part in parts:
        uploads[part.path.rpartition("/")[2].partition(".")[0]].append(part)
    for head in heads[outranked:]:
        uploads.pop(head.id, None)
    for upload in uploads.values():
        if now - max(part.modified for part in upload) >= GRACE:
            gone += [part.path for part in upload]
    return gone


async def _side_by_side(client: Client) -> AsyncIterator[tuple[list[Found], list[Found]]]:
    """The objects of each name in `heads` and in `data`."""
    async with (
        closing(by_name(client, "heads")) as heads,
        closing(by_name(client, "data")) as data,
    ):
        objects, parts = await anext(heads, None), await anext(data, None)
        while objects or parts:
            first = min(_folder(found) for found in (objects, parts) if found)
            here = objects if objects and _folder(objects) == first else None
            there = parts if parts and _folder(parts) == first else None
            yield here or [], there or []
            if here:
                objects = await anext(heads, None)
            if there:
                parts = await anext(data, None)


def _folder(found: Sequence[Found]) -> str:
    """PPPP/NAME! of the objects of one name."""
    return found[0].path.partition("/")[2].rpartition("/")[0]
