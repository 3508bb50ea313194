"""`dolmen status`: the state of a cluster or a store."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import typer

from dolmen.cli.cluster_table import cluster_lines
from dolmen.cli.ending import FAILED, run
from dolmen.cli.options import SERVER, Json, ServerOption
from dolmen.cli.output import emit, readable


def status(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="A store's URL; without it the API server's view."),
    ] = None,
    server: ServerOption = SERVER,
    json: Json = False,
) -> None:
    """Show the state of a cluster, or of one store. Exit status 1 when there are problems.

    [green]dolmen status[/green]

    [green]dolmen status http://127.0.0.1:3001[/green]

    [green]dolmen status volume:./dolmen-data[/green]
    """
    said = run(_of_store(store) if store else _of_cluster(server))
    if json:
        emit(said)
    else:
        for line in _lines(said) if store else cluster_lines(said, time.time()):
            print(line)
    raise typer.Exit(FAILED if _has_problems(said) else 0)


async def _of_cluster(server: str) -> dict[str, object]:
    from dolmen.client import AsyncClient

    async with AsyncClient(server) as client:
        return await client.cluster()


async def _of_store(url: str) -> dict[str, object]:
    from dolmen.closing import closing
    from dolmen.store import Listing
    from dolmen.stores import open_existing
    from dolmen.stores.secrets import without_secrets

    store = await open_existing(url, read_only=True)
    url = without_secrets(url)
    try:
        condition = dataclasses.asdict(await store.condition())
        if not store.capabilities.digests:  # it would have to list everything
            return {"store": url, **condition}
        digests = await store.digests()
        async with closing(store.list(Listing(quarantined=True))) as infos:
            quarantined = [info.name async for info in infos]
    finally:
        await store.aclose()
    held = {"blobs": digests.count, "bytes": digests.size, "root": digests.root}
    if quarantined:
        held["quarantined"] = len(quarantined)
    return {"store": url, **held, **condition}


def _has_problems(value: object) -> bool:
    """Whether a store somewhere in this reports a problem."""
    if isinstance(value, dict):
        if value.get("reachable") is False:
            return True
        if value.get("missing") or value.get("trouble") or value.get("quarantined"):
            return True
        return bool(value.get("reasons")) or any(map(_has_problems, value.values()))
    return isinstance(value, list) and any(map(_has_problems, value))


def _lines(value: object, indent: str = "") -> list[str]:
    """A JSON value as indented lines."""
    lines: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                lines += [f"{indent}{key}", *_lines(inner, indent + "  ")]
            elif isinstance(inner, int) and key in ("bytes", "free", "total", "free_bytes"):
                lines.append(f"{indent}{key:10} {readable(inner)}")
            elif inner not in (None, [], {}):
                lines.append(f"{indent}{key:10} {inner}")
    elif isinstance(value, list):
        for inner in value:
            lines += _lines(inner, indent)
    else:
        lines.append(f"{indent}{value}")
    return lines
