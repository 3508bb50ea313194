"""`dolmen stat`: what is known of an object."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dolmen.cli.ending import run
from dolmen.cli.options import SERVER, Json, ObjectId, ServerOption
from dolmen.cli.output import emit, readable

if TYPE_CHECKING:
    from dolmen.client import ObjectInfo


def stat(object_id: ObjectId, server: ServerOption = SERVER, json: Json = False) -> None:
    """Show an object's size, metadata, and where its copies are."""
    info = run(_stat(object_id, server))
    if json:
        emit(dataclasses.asdict(info))
        return
    print(f"{info.id}\n  size      {readable(info.size)} ({info.size})")
    for name, value in sorted(info.metadata.items()):
        print(f"  {name:9} {value}")
    for copy in info.copies:
        print("  copy      " + ", ".join(f"{key} {value}" for key, value in copy.items()))
    if info.degraded:
        print("  degraded: it has fewer copies than its group wants; dolmen replicate makes them")


async def _stat(object_id: str, server: str) -> ObjectInfo:
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:
        return await client.stat(object_id)
