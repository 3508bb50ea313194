"""What the URL of a Redis store says, and what its servers are set to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dolmen.errors import BadSetting
from dolmen.store import Condition

PORT = 6379
CLUSTER = "redis+cluster"
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
Place = tuple[str, int]
"""Host and port of a server."""


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


def at(place: Place) -> str:
    """A place as it is written."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(url: str) -> Address:
    """Read a URL of the form that `dolmen.stores.redis` shows.

    Raises `BadSetting`, which repeats nothing that may be a piece of a password.
    """
    scheme, _, rest = url.partition("://")
    many = scheme == CLUSTER
    try:
        parts = urlsplit(f"//{rest}")
        login, _, servers = parts.netloc.rpartition("@")
        places = [_place(each) for each in servers.split(",")]
        options = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError:
        raise _bad(scheme, "it has no host and port, or a password not percent-encoded") from None
    prefix = options.pop("prefix", "dolmen")
    database = re.fullmatch(r"/?([0-9]{0,4})", parts.path)
    if options or parts.fragment:
        raise _bad(scheme, "prefix= is all that can be set in it")
    if not _PREFIX.fullmatch(prefix):
        raise _bad(scheme, "a prefix is 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if database is None or (many and database[1].strip("0")):
        raise _bad(scheme, "a cluster has no databases" if many else "a database is a number")
    if len(places) > 1 and not many:
        raise _bad(scheme, f"several servers are a cluster: {CLUSTER}://")
    user, _, password = login.partition(":")
    return Address(scheme, places, unquote(user), unquote(password), int(database[1] or 0), prefix)


def _place(text: str) -> Place:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return parts.hostname, PORT if parts.port is None else parts.port


def _bad(scheme: str, why: str) -> BadSetting:
    form = "host[:port][,host[:port]...]" if scheme == CLUSTER else "host[:port][/database]"
    return BadSetting(
        f"the URL of a {scheme}: store can't be used: {why}; "
        f"write {scheme}://[[user]:password@]{form}[?prefix=name]"
    )


_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


SETTINGS = [(b"INFO",), *((b"CONFIG", b"GET", each.encode()) for each in _DURABLE)]
"""The commands whose replies make a `State`."""


class State:
    """What a server said. `replies` are those to `SETTINGS`; one that is None says nothing.

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
