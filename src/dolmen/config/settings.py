"""What can be set, of which type, and within which bounds."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from blake3 import blake3
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dolmen.stores import SCHEMES

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` (`[::1]:80` for IPv6); raises `ValueError`."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("should be HOST:PORT, for example 127.0.0.1:9991")
    if ":" in bare and not host.startswith("["):
        raise ValueError("should have its IPv6 address in brackets, for example [::1]:9991")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """`HOST:PORT`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens there."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(address: str) -> str:
    split_address(address)
    return address


def _store_url(url: str) -> str:
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise ValueError(f"should be a store URL that begins with one of {known}")
    if scheme in ("http", "https") and not urlsplit(url).hostname:
        raise ValueError("should name a server, for example http://127.0.0.1:3001")
    return url.rstrip("/") if scheme in ("http", "https") else url


def _host_name(name: str) -> str:
    if _HOST.fullmatch(name) is None:
        raise ValueError("should be a host's name without scheme or port, such as files.example")
    return name.lower()


Address = Annotated[str, AfterValidator(_address)]
HostName = Annotated[str, AfterValidator(_host_name)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
Bandwidth = Annotated[int, Field(ge=1)] | None
"""Bytes a second, at most; None: as fast as it goes."""
Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Copies = Annotated[int, Field(ge=1, le=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Server(_Strict):
    """One member of a group."""

    name: Name
    """What placement knows it by: it may move to another URL, but not change its name."""
    url: StoreUrl
    weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Its share of its group; set it by disk size. 0: it should hold nothing (`dolmen drain`)."""
    zone: Name | None = None
    """Copies go to different zones."""


class Group(_Strict):
    """Servers that hold copies of the same objects. What is None here is as set for all."""

    name: Name
    servers: Annotated[list[Server], Field(min_length=1)]
    copies: Copies | None = None
    write_copies: Copies | None = None
    min_copies: Copies | None = None


class Limits(_Strict):
    """What one client may cost. Sizes in bytes, times in seconds."""

    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """At once in a process; one more is answered 503."""
    body_size: Annotated[int, Field(ge=1)] = 1 << 50
    """The largest upload; 413 beyond."""
    upload_memory: Annotated[int, Field(ge=32 << 20)] = 192 << 20
    """Bodies in flight, in a process; readers wait when it is spent."""
    header_deadline: Seconds = 10.0
    body_idle: Seconds = 30.0
    keep_alive: Seconds = 75.0


class Replication(_Strict):
    """How servers are brought to what they should hold."""

    bandwidth: Bandwidth = None
    parallel: Annotated[int, Field(ge=1, le=64)] = 4
    """Servers that are copied to at once."""
    reclaim_days: Annotated[float, Field(ge=1, le=36_500)] = 30.0
    """Days after which a delete is forgotten; no server may be away for longer."""


class Scrub(_Strict):
    """How a server with a volume reads it through, to find damage in time."""

    bandwidth: Bandwidth = 20_000_000
    every_days: Annotated[float, Field(ge=0, le=36_500)] = 30.0
    """Days from the end of one to the beginning of the next; 0: never."""


class Compaction(_Strict):
    """How a server with a volume gives back the room of what was deleted or replaced."""

    bandwidth: Bandwidth = 32_000_000


class Settings(_Strict):
    """Everything that can be set. What is None has a default of the command that uses it."""

    data: str = "./dolmen-data"
    """`dolmen serve`: the folder of its volume."""
    store: StoreUrl | None = None
    """`dolmen blob-server`: what it is a front of."""
    open: bool = False
    """Listen on addresses that other machines reach, to whoever asks."""
    listen: Address | None = None
    download_listen: Address | None = None
    """Where an API server answers downloads only."""
    hosts: list[HostName] = []
    """Names under which a proxy answers for addresses on loopback."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    blob_servers: list[StoreUrl] = []
    """Servers of one group, where nothing more is to be said about them."""
    groups: list[Group] = []
    copies: Copies | None = None
    """Servers an object should be on; None: every server of its group."""
    write_copies: Copies | None = None
    """Copies made before an upload is answered; None: 2, or 1 where there is one server."""
    min_copies: Copies = 1
    """An upload that made fewer has failed."""
    epoch: Annotated[int, Field(ge=0)] = 0
    """Raised with every change of servers, weights, zones or copies."""
    repair: bool = True
    """Have an API server over several servers keep each at what it should hold."""
    replication: Replication = Replication()
    scrub: Scrub = Scrub()
    compaction: Compaction = Compaction()
    digest: Literal["sha256", "sha1"] = "sha256"
    """Of which an object's id is made; sha1 for objects that came from sos."""
    limits: Limits = Limits()

    @field_validator("listen", "download_listen")
    @classmethod
    def _said_outright(cls, address: str | None, others: ValidationInfo) -> str | None:
        if address and not others.data.get("open") and not _is_loopback(address):
            raise ValueError(
                "should be an address of this machine alone, such as 127.0.0.1:PORT: other "
                "machines can reach this one, which has to be said outright with --open "
                "(or open = true)"
            )
        return address

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for what, seen in (
            ("group", [group.name for group in self.groups]),
            ("server", [each.name for group in self.groups for each in group.servers]),
            ("server", [each.url for group in self.groups for each in group.servers]),
            ("server", self.blob_servers),
        ):
            if twice := next((each for each in seen if seen.count(each) > 1), None):
                raise ValueError(f"names the {what} {twice} twice; each may be named once")
        groups = self.all_groups()
        if groups and not any(each.weight for group in groups for each in group.servers):
            raise ValueError("should give some server a weight above 0")
        return self

    def all_groups(self) -> list[Group]:
        """The groups with what is set for all; servers that are only listed are one group.

        Raises `ValueError` where a group has too few servers for its copies.
        """
        groups = self.groups
        if self.blob_servers:
            servers = [Server(name=server_name(url), url=url) for url in self.blob_servers]
            groups = [Group(name="all", servers=servers)]
        return [self._complete(group) for group in groups]

    def fingerprint(self) -> str:
        """16 hex digits that differ where another server would hold something, or be another."""
        placed = [
            [
                group.name,
                group.copies,
                sorted([each.name, each.url, each.weight, each.zone] for each in group.servers),
            ]
            for group in sorted(self.all_groups(), key=lambda group: group.name)
        ]
        return blake3(json.dumps(placed).encode()).hexdigest(8)

    def _complete(self, group: Group) -> Group:
        chosen = {
            what: getattr(group, what) or getattr(self, what)
            for what in ("copies", "write_copies", "min_copies")
        }
        # A group that holds nothing any more only has to take deletes.
        count = sum(each.weight > 0 for each in group.servers) or len(group.servers)
        copies = chosen["copies"] or count
        write_copies = chosen["write_copies"] or min(2, copies)
        for what, number, bound, limit in (
            ("copies", copies, "the number of its servers with a weight", count),
            ("write_copies", write_copies, "copies", copies),
            ("min_copies", chosen["min_copies"], "write_copies", write_copies),
        ):
            if number > limit:
                raise ValueError(
                    f"gives the group {group.name} {what} = {number}, "
                    f"which should be at most {bound}, {limit}"
                )
        return group.model_copy(update=chosen)


def server_name(url: str) -> str:
    """What placement calls a server of which only the URL is given, wherever that is."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        plain = f"{parts.hostname}-{parts.port or (443 if parts.scheme == 'https' else 80)}"
    else:
        plain = parts.netloc.rpartition("@")[2] + parts.path
    words = "".join(each if each.isascii() and each.isalnum() else "-" for each in plain)
    return words.rstrip("-")[-64:].lstrip("-") or "store"
