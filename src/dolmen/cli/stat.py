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
    print(f"  copies    {info.copies} of {info.wanted}")
    for each in info.servers:
        detail = f" ({each['detail']})" if "detail" in each else ""
        print(f"  on        {each['server']}: {each['state']}{detail}")
    if info.degraded:
        print("  degraded: dolmen replicate makes the missing copies")


async def _stat(object_id: str, server: str) -> ObjectInfo:
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:
        return await client.stat(object_id)
