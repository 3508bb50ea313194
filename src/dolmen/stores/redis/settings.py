"""What a Redis server is set to, and how it is doing."""

from __future__ import annotations

from collections.abc import Sequence

from dolmen.store import Condition
from dolmen.stores.redis.connection import Ask, Reply
from dolmen.stores.redis.refusals import Refused

_ASKED = (
    (b"INFO",),
    (b"CONFIG", b"GET", b"append*"),
    (b"CONFIG", b"GET", b"no-appendfsync-on-rewrite"),
    (b"CONFIG", b"GET", b"maxmemory-policy"),
)
_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


def asks() -> list[Ask]:
    """The commands whose replies say all of it."""
    return [Ask(command, refusal="does not tell its settings") for command in _ASKED]


class State:
    """What a server said. `replies` are those to `asks`, errors among them.

    Raises what is no reply.
    """

    def __init__(self, where: str, replies: Sequence[Reply | BaseException]) -> None:
        self._where = where
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, Refused):
                raise reply
        info, *settings = replies
        text = "" if isinstance(info, Refused) else info.decode()
        lines = (line.partition(":") for line in text.splitlines())
        self._info = {key: value for key, _, value in lines}
        words = [
            word.decode() for reply in settings if not isinstance(reply, Refused) for word in reply
        ]
        self._settings = dict(zip(words[::2], words[1::2], strict=True))

    @property
    def of_cluster(self) -> bool | None:
        """Whether it belongs to a cluster; None where it does not tell."""
        mode = self._info.get("redis_mode")
        return None if mode is None else mode == "cluster"

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
            condition.reasons.append(f"{where} is not durable: {', '.join(self.lacking)}")
        used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        if limit:
            condition.total, condition.free = limit, max(limit - used, 0)
            if used >= limit:
                condition.writable = False
                condition.reasons.append(f"{where} is full: {used} bytes of a maxmemory of {limit}")
        if info.get("role") == "slave":
            condition.writable = False
            condition.reasons.append(f"{where} is a replica, which takes no writes")
        for what, key in (
            ("write its append-only file", "aof_last_write_status"),
            ("rewrite its append-only file", "aof_last_bgrewrite_status"),
            ("save a snapshot", "rdb_last_bgsave_status"),
        ):
            if info.get(key, "ok") != "ok":
                condition.reasons.append(f"{where} could not {what} the last time it tried")
        return condition


def together(conditions: Sequence[Condition]) -> Condition:
    """The condition of several servers that share the blobs."""
    free = [each.free for each in conditions if each.free is not None]
    total = [each.total for each in conditions if each.total is not None]
    told = len(total) == len(conditions)
    return Condition(
        sum(free) if told else None,
        sum(total) if told else None,
        all(each.writable for each in conditions),
        [reason for each in conditions for reason in each.reasons],
    )
