"""What the URL of a Redis store says, and what its servers are set to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from dolmen.errors import BadSetting
from dolmen.store import Condition
from dolmen.stores.connection import Place, at, place_of

CLUSTER = "redis+cluster"
_URL = re.compile(
    r"(?P<scheme>rediss?|redis\+cluster)://((?P<login>[^/?#]*)@)?(?P<servers>[^@/?#]+)"
    r"(/(?P<database>[0-9]{0,4}))?(\?prefix=(?P<prefix>[A-Za-z0-9._-]{1,64}))?"
)
_FORM = (
    "write redis://[[user]:password@]host[:port][/database][?prefix=name], rediss:// for TLS, or"
    " redis+cluster://[[user]:password@]host[:port][,host[:port]...][?prefix=name], which has no"
    " databases; a password is percent-encoded, a prefix 1 to 64 characters of A-Z a-z 0-9 . _ -"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the servers are, who asks (empty for nobody), and the prefix of every key."""

    scheme: str
    servers: list[Place]
    user: str
    password: str
    database: int
    prefix: str

    def __str__(self) -> str:
        """The URL without user and password."""
        servers = ",".join(map(at, self.servers))
        return f"{self.scheme}://{servers}" + (f"/{self.database}" if self.database else "")


def parse(url: str) -> Address:
    """Read a URL of the form that `dolmen.stores.redis` shows.

    Raises `BadSetting`, which repeats nothing that may be a piece of a password.
    """
    found = _URL.fullmatch(url)
    try:
        places = [place_of(each, 6379) for each in found["servers"].split(",")] if found else []
    except ValueError:
        places = []
    if found is None or not places:
        raise BadSetting(f"the URL of a Redis store can't be used: {_FORM}")
    scheme, database = found["scheme"], int(found["database"] or 0)
    if len(places) > 1 and scheme != CLUSTER:
        raise BadSetting(f"several servers of Redis are a cluster: {_FORM}")
    if database and scheme == CLUSTER:
        raise BadSetting(f"a cluster of Redis has no databases: {_FORM}")
    user, _, password = map(unquote, (found["login"] or "").partition(":"))
    return Address(scheme, places, user, password, database, found["prefix"] or "dolmen")


_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
SETTINGS = [(b"INFO",), *((b"CONFIG", b"GET", each.encode()) for each in _DURABLE)]
"""The commands whose replies make a `State`."""


class State(NamedTuple):
    """What a server is set to and how it is doing. `mode` is empty where it does not tell."""

    mode: str
    durable: bool
    """Whether writes survive a power cut."""
    condition: Condition


def state_of(where: str, replies: Sequence[Any]) -> State:
    """What the replies to `SETTINGS` say; one that is None says nothing."""
    told, *settings = replies
    lines = (line.partition(":") for line in (told or b"").decode().splitlines())
    info = {key: value for key, _, value in lines}
    held = {pair[0].decode(): pair[1].decode() for pair in settings if pair}
    lacking = [
        f"{setting} is {held.get(setting, 'not told')}, not {wanted}"
        for setting, wanted in _DURABLE.items()
        if held.get(setting) != wanted
    ]
    condition = Condition()
    if lacking:
        condition.remarks.append(f"{where} is not durable: {', '.join(lacking)}")
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
    return State(info.get("redis_mode", ""), not lacking, condition)


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
