"""A cluster as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dolmen.cli.output import readable

_HEAD = ("server", "state", "free", "blobs", "data", "missing", "misplaced", "compared", "scrubbed")


def cluster_lines(said: dict[str, Any], now: float) -> Sequence[str]:
    """The lines for what an API server says of its cluster. `now` is in seconds since 1970."""
    lines = []
    for group in said["groups"]:
        servers = group["servers"]
        lines.append(
            f"group {group['group']}: {len(servers)} servers, {group['copies']} copies of all"
        )
        lines += _table([_HEAD, *(_row(server, now) for server in servers)])
        for server in servers:
            told = [server.get("detail"), *server.get("reasons", []), *server.get("remarks", [])]
            lines += [f"  {server['server']}: {line}" for line in told if line]
        lines.append("")
    if "repair" in said:
        lines.append(f"repair: {_repair(said['repair'], now)}")
    else:
        lines.append("repair: disabled in this API server (or run dolmen replicate --watch)")
    return lines


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


def _table(rows: Sequence[Sequence[str]]) -> Sequence[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 2  # columns of words; the others are numbers
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
