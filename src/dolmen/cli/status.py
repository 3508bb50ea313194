"""`dolmen status`: the state of a cluster, as a table, or of a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from dolmen.cli.ending import FAILED
from dolmen.cli.options import SERVER, Json, ServerOption
from dolmen.cli.output import readable, show

_HEAD = ("server", "state", "free", "blobs", "data", "missing", "misplaced", "compared", "scrubbed")
_SIZES = ("bytes", "free", "total")


async def status(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="A store's URL; without it the API server's view."),
    ] = None,
    server: ServerOption = SERVER,
    json: Json = False,
) -> int:
    """Show the state of a cluster, or of one store. Exit status 1 when there are problems.

    [green]dolmen status[/green]

    [green]dolmen status http://127.0.0.1:3001[/green]

    [green]dolmen status volume:./dolmen-data[/green]
    """
    if store is not None:
        said = await _of_store(store)
        problems = bool(said["reasons"] or said.get("quarantined"))
        show(said, _store_lines(said), as_json=json)
    else:
        from dolmen.client import AsyncClient

        async with AsyncClient(server) as client:
            said = await client.cluster()
        problems = _has_problems(said)
        show(said, cluster_lines(said, time.time()), as_json=json)
    return FAILED if problems else 0


async def _of_store(url: str) -> dict[str, Any]:
    from dolmen.closing import closing
    from dolmen.store import Listing
    from dolmen.stores import open_existing
    from dolmen.stores.secrets import without_secrets

    store = await open_existing(url, read_only=True)
    said: dict[str, Any] = {"store": without_secrets(url)}
    try:
        condition = await store.condition()
        if store.capabilities.digests:  # else it would have to list everything
            digests = await store.digests()
            said |= {"blobs": digests.count, "bytes": digests.size, "root": digests.root}
            async with closing(store.list(Listing(quarantined=True))) as infos:
                if quarantined := len([info async for info in infos]):
                    said["quarantined"] = quarantined
    finally:
        await store.aclose()
    return said | asdict(condition)


def _store_lines(said: dict[str, Any]) -> Iterator[str]:
    for key, value in said.items():
        if isinstance(value, list):
            if value:
                yield key
            yield from (f"  {line}" for line in value)
        elif value is not None:
            yield f"{key:10} {readable(value) if key in _SIZES else value}"


def _has_problems(said: dict[str, Any]) -> bool:
    """Whether an API server knows of something that is wrong with its cluster."""
    servers = [server for group in said["groups"] for server in group["servers"]]
    return bool((said.get("repair") or {}).get("trouble")) or any(
        not each["reachable"] or each.get("reasons") or each.get("missing") for each in servers
    )


def cluster_lines(said: dict[str, Any], now: float) -> Iterator[str]:
    """The lines for what an API server says of its cluster. `now` is in seconds since 1970."""
    for group in said["groups"]:
        servers = group["servers"]
        yield f"group {group['group']}: {len(servers)} servers, {group['copies']} copies of all"
        yield from _table([_HEAD, *(_row(server, now) for server in servers)])
        for server in servers:
            remarks = [server.get("detail"), *server.get("reasons", []), *server.get("remarks", [])]
            yield from (f"  {server['server']}: {line}" for line in remarks if line)
        yield ""
    if "repair" in said:
        yield f"repair: {_repair(said['repair'], now)}"
    else:
        yield "repair: disabled in this API server (or run dolmen replicate --watch)"


def _row(server: dict[str, Any], now: float) -> Sequence[str]:
    free, total = server.get("free"), server.get("total")
    return (
        server["server"],
        _state(server),
        f"{readable(free)} of {readable(total)}" if free is not None and total else "-",
        _count(server.get("blobs")),
        readable(server["bytes"]) if "bytes" in server else "-",
        _count(server.get("missing")),
        _count(server.get("misplaced")),
        ago(server["compared_at"], now) if "compared_at" in server else "-",
        ago(server["scrubbed_at"], now) if "scrubbed_at" in server else "-",
    )


def _state(server: dict[str, Any]) -> str:
    if not server["reachable"]:
        return "UNREACHABLE"
    if not server["writable"]:
        return "READ-ONLY"
    if server["reasons"]:
        return "DEGRADED"
    return "ok" if server["weight"] else "draining"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def ago(when: float | None, now: float) -> str:
    """How long ago something was, in one unit."""
    if when is None:
        return "never"
    seconds = max(0.0, now - when)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _repair(told: dict[str, Any] | None, now: float) -> str:
    if told is None:
        return "has just begun"
    if told["trouble"]:
        return f"failed: {told['trouble']}"
    done = f"{told['copied']:,} copied ({readable(told['bytes'])}), {told['removed']:,} removed"
    if told["copying"]:
        return f"copying from {told['copying']}; {done} before"
    if not told["rounds"]:
        return "has just begun"
    state = "fully replicated" if told["complete"] else "not fully replicated"
    failing = "".join(f"; {name}: {why}" for name, why in told["failing"].items())
    return f"{state} {ago(told['ended'], now)}; {done} since it began{failing}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 2  # columns of words; the others are numbers
    for row in rows:
        cells = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
