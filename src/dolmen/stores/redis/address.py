"""What the URL of a Redis store says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from dolmen.errors import BadSetting

PORT = 6379
CLUSTER = "redis+cluster"
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the servers are, who asks, and the prefix of every key."""

    scheme: str
    servers: list[tuple[str, int]]
    user: str | None
    password: str | None
    database: int
    prefix: str

    def __str__(self) -> str:
        """The URL without user and password."""
        servers = ",".join(f"{host}:{port}" for host, port in self.servers)
        return f"{self.scheme}://{servers}" + (f"/{self.database}" if self.database else "")


def parse(url: str) -> Address:
    """Read a URL of the form that `dolmen.stores.redis` shows; raises `BadSetting`."""
    scheme, _, rest = url.partition("://")
    place, query = urlsplit(f"//{rest}").path, urlsplit(f"//{rest}").query
    login, _, servers = urlsplit(f"//{rest}").netloc.rpartition("@")
    user, _, password = login.partition(":")
    options = dict(parse_qsl(query, keep_blank_values=True))
    prefix = options.pop("prefix", "dolmen")
    database = place.strip("/")
    if options:
        raise _bad(scheme, f"{next(iter(options))}= is no part of it")
    if not _PREFIX.fullmatch(prefix):
        raise _bad(scheme, "a prefix is 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if database and not (database.isascii() and database.isdigit()):
        raise _bad(scheme, f"{database[:40]!r} is not the number of a database")
    if scheme == CLUSTER and database not in ("", "0"):
        raise _bad(scheme, "a cluster has no databases")
    if scheme != CLUSTER and "," in servers:
        raise _bad(scheme, f"several servers are a cluster: {CLUSTER}://")
    return Address(
        scheme,
        [_server(scheme, each) for each in servers.split(",")],
        unquote(user) or None,
        unquote(password) or None,
        int(database or 0),
        prefix,
    )


def _server(scheme: str, text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad(scheme, f"{text[:80]!r} is no host and port") from error
    if not host:
        raise _bad(scheme, "it names no host")
    return host, PORT if port is None else port


def _bad(scheme: str, why: str) -> BadSetting:
    form = "host[:port][,host[:port]...]" if scheme == CLUSTER else "host[:port][/database]"
    return BadSetting(
        f"the URL of a {scheme}: store can't be used: {why}; "
        f"write {scheme}://[[user]:password@]{form}[?prefix=name]"
    )
