"""What a Redis server is set to, and how it is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dolmen.store import Condition
from dolmen.stores.redis.connection import Ask

_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


def asks() -> list[Ask]:
    """The commands whose replies say all of it."""
    settings = [Ask(b"CONFIG", b"GET", each.encode(), optional=True) for each in _DURABLE]
    return [Ask(b"INFO", optional=True), *settings]


class State:
    """What a server said. `replies` are those to `asks`; one that is None says nothing.

    `mode` is "standalone" or "cluster", or empty where it does not tell.
    """

    def __init__(self, where: str, replies: Sequence[Any]) -> None:
        info, *settings = replies
        lines = (line.partition(":") for line in (info or b"").decode().splitlines())
        self._where = where
        self._info = {key: value for key, _, value in lines}
        self._settings = {pair[0].decode(): pair[1].decode() for pair in settings if pair}
        self.mode = self._info.get("redis_mode", "")

    @property
    def lacking(self) -> list[str]:
        """What keeps writes from surviving a power cut; nothing where they do."""
        return [
            f"{setting} is {self._settings.get(setting, 'not told')}, not {wanted}"
            for setting, wanted in _DURABLE.items()
            if self._settings.get(setting) != wanted
        ]

    @property
    def condition(self) -> Condition:
        """How it is doing."""
        info, where = self._info, self._where
        condition = Condition()
        if self.lacking:
            condition.remarks.append(f"{where} is not durable: {', '.join(self.lacking)}")
        used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        if limit:
            condition.total, condition.free = limit, max(limit - used, 0)
            if not condition.free:
                condition.reasons.append(f"{where} is full: {used} bytes of a maxmemory of {limit}")
        if info.get("role") == "slave":
            condition.reasons.append(f"{where} is a replica, which takes no writes")
        condition.writable = not condition.reasons
        for key in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
            if info.get(key, "ok") != "ok":
                condition.reasons.append(f"{where} has trouble with its disk: {key} is {info[key]}")
        return condition


def together(conditions: Sequence[Condition]) -> Condition:
    """The condition of servers that share the blobs."""
    limited = all(each.total is not None for each in conditions)
    return Condition(
        sum(each.free or 0 for each in conditions) if limited else None,
        sum(each.total or 0 for each in conditions) if limited else None,
        all(each.writable for each in conditions),
        [reason for each in conditions for reason in each.reasons],
        [remark for each in conditions for remark in each.remarks],
    )
