"""The sweep: what was outranked, or is data without a head, goes after a day.

Any number of processes may sweep at once. Why it takes nothing that somebody needs is said in
`dolmen.stores.bucket`. Read that first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from dolmen.closing import closing
from dolmen.errors import DolmenError
from dolmen.repeating import Repeating
from dolmen.stores.bucket_client import PAGE, Client, Found
from dolmen.stores.bucket_data import GRACE
from dolmen.stores.bucket_head import by_name, heads_of

SWEPT = "swept"
"""An object that was last written when a sweep began."""
_FIRST, _NEXT = 60, 3600
"""Seconds after which an open store looks whether a sweep is due."""


class Sweeper:
    """Sweeps once a day, in whichever process looks first.

    `trouble` is a sentence while it does not work.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sweeping: Repeating | None = None
        self.trouble = ""

    def start(self) -> None:
        """Begin, until `aclose`."""
        self._sweeping = Repeating(self._sweep, wait=_FIRST)

    async def aclose(self) -> None:
        """Stop."""
        if self._sweeping is not None:
            await self._sweeping.aclose()

    async def _sweep(self) -> float:
        try:
            await self.sweep_if_due()
            self.trouble = ""
        except DolmenError as error:
            self.trouble = f"outdated data could not be deleted: {error}"
        return _NEXT

    async def sweep_if_due(self) -> None:
        """Sweep, unless a sweep began within a day."""
        now = await self._client.now(fresh=True)
        swept = await self._client.modified(SWEPT)
        if swept is not None and now - swept < GRACE:
            return
        await self._client.put(SWEPT, b"")
        try:
            await sweep(self._client, now)
        except DolmenError:
            await self._client.delete([SWEPT])
            raise


async def sweep(client: Client, now: float) -> None:
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
    outranked = 0
    for number, head in enumerate(heads):
        if now - head.modified >= GRACE:
            outranked = number
    gone = [head.path for head in heads[:outranked]]
    present = {found.path for found in objects}.difference(gone)
    gone += [path for path in present if path.endswith("!") and path[:-1] not in present]
    newest: dict[str, int] = {}
    for part in parts:
        upload = part.path.rpartition(".")[0]
        newest[upload] = max(newest.get(upload, 0), part.modified)
    kept = {head.id for head in heads[outranked:]}
    for part in parts:
        upload = part.path.rpartition(".")[0]
        if upload.rpartition("/")[2] not in kept and now - newest[upload] >= GRACE:
            gone.append(part.path)
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
