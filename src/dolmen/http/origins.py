"""Keeping web pages elsewhere from reaching a server through its user's browser."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from dolmen.http.messages import Headers

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_PORT = re.compile(r":[0-9]*\Z")


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """Which pages and names may reach this server.

    `hosts`: further names, lower-case and without port, under which a loopback listener is
    asked and whose pages may change state: those a proxy answers for.
    """

    hosts: frozenset[str] = frozenset()

    def foreign(self, headers: Headers) -> str | None:
        """Why a request with these headers must not change state, or None when it may."""
        origin = headers.get(b"origin")
        if origin is not None:
            name = origin.decode("latin-1")
            page = name.lower().partition("://")[2]
            own = headers.get(b"host", b"").decode("latin-1").lower()
            if page != own and _PORT.sub("", page) not in self.hosts:
                return f"A page of {name} may not change anything on this server."
        elif headers.get(b"sec-fetch-site") == b"cross-site":
            return "A page of another site may not change anything on this server."
        return None

    def misdirected(self, headers: Headers) -> str | None:
        """Why a loopback listener must not answer for this Host, or None when it may."""
        host = headers.get(b"host")
        if host is None:
            return None
        name = _PORT.sub("", host.decode("latin-1")).lower()
        if name in self.hosts or is_loopback(name):
            return None
        return (
            f"This server listens on a loopback address and does not answer for {name}. "
            "Ask for localhost or 127.0.0.1, or add the name to its setting `hosts`."
        )


@lru_cache(maxsize=256)
def is_loopback(name: str) -> bool:
    """Whether a host name or address (IPv6 with or without brackets) is this very machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
