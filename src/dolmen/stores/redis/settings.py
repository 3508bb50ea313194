"""What a Redis server is set to, and how it is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dolmen.errors import DolmenError, Unavailable
from dolmen.store import Condition

ASKED: tuple[tuple[bytes, ...], ...] = (
    (b"INFO",),
    (b"CONFIG", b"GET", b"append*"),
    (b"CONFIG", b"GET", b"no-appendfsync-on-rewrite"),
    (b"CONFIG", b"GET", b"maxmemory-policy"),
)
"""The commands whose replies say all of it."""

_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


def not_durable(replies: Sequence[Any]) -> list[str]:
    """What keeps writes from surviving a power cut; nothing where they do."""
    found: dict[str, str] = {}
    for reply in replies[1:]:
        if isinstance(reply, DolmenError):
            return [f"it does not tell its settings ({reply})"]
        words = [word.decode() for word in reply]
        found.update(zip(words[::2], words[1::2], strict=True))
    return [
        f"{setting} is {found.get(setting, 'not told')}, not {wanted}"
        for setting, wanted in _DURABLE.items()
        if found.get(setting) != wanted
    ]


def condition_of(where: str, replies: Sequence[Any]) -> Condition:
    """How the server at `where` is doing."""
    info = replies[0]
    if isinstance(info, Unavailable):
        raise info
    text = "" if isinstance(info, DolmenError) else info.decode()  # who may not ask goes without
    lines = (line.partition(":") for line in text.splitlines())
    said = {key: value for key, _, value in lines}
    condition = Condition()
    if lacking := not_durable(replies):
        condition.reasons.append(f"{where} does not count as durable: " + ", ".join(lacking))
    used, limit = int(said.get("used_memory", 0)), int(said.get("maxmemory", 0))
    if limit:
        condition.total, condition.free = limit, max(limit - used, 0)
        if used >= limit:
            condition.writable = False
            condition.reasons.append(
                f"{where} is full: it uses {used} bytes of a maxmemory of {limit}"
            )
    if said.get("role") == "slave":
        condition.writable = False
        condition.reasons.append(f"{where} is a replica, which takes no writes")
    for what, key in (
        ("write its append-only file", "aof_last_write_status"),
        ("rewrite its append-only file", "aof_last_bgrewrite_status"),
        ("save a snapshot", "rdb_last_bgsave_status"),
    ):
        if said.get(key, "ok") != "ok":
            condition.reasons.append(f"{where} could not {what} the last time it tried")
    return condition


def together(conditions: Sequence[Condition]) -> Condition:
    """The condition of several servers that share the blobs."""
    whole = Condition(
        writable=all(each.writable for each in conditions),
        reasons=[reason for each in conditions for reason in each.reasons],
    )
    if all(each.free is not None and each.total is not None for each in conditions):
        whole.free = sum(each.free or 0 for each in conditions)
        whole.total = sum(each.total or 0 for each in conditions)
    return whole
