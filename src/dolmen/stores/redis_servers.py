"""Redis servers as the driver asks them: one, or a cluster of them.

Each server has a client of redis-py, which knows the protocol, TLS and logging in. It is set to
repeat nothing: what was under way when a connection was lost may have happened. What is asked at
once shares a round trip. Writes take several connections, for Redis flushes once for what it
reads at a time; what moves much data has its own, so that nothing small waits behind it.

In a cluster the layout is asked for when the first command comes, and again after a server was
lost or sent us elsewhere. A command that was refused (MOVED, ASK, TRYAGAIN) was not carried out
and goes on to where it belongs. redis-py's own client of clusters does not do while a slot moves,
and breaks what is under way when the layout changes.

Read first: `dolmen.stores.batches`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions as said
from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from dolmen.errors import BadSetting, DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.stores.batches import Batches
from dolmen.stores.driver import Refused

Command = tuple[Any, ...]
Place = tuple[str, int]
"""Host and port of a server."""

_LANES = {"reads": (2, 128), "writes": (8, 8), "bulk": (2, 4)}
"""Connections of each kind, and how many questions share a round trip."""
_DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
_CHANGES = frozenset(("EVAL", "SET", "UNLINK"))
_ERRORS = (said.RedisError, OSError)
_DENIED = "does not permit it; mend the user or password in the store's URL"
_MEANINGS: tuple[tuple[Any, str, type[DolmenError], str], ...] = (
    (said.AuthenticationError, "", Refused, _DENIED),
    (said.NoPermissionError, "", Refused, _DENIED),
    (said.ResponseError, "AUTH", Refused, _DENIED),
    (said.ResponseError, "DB index", Refused, "has no such database: mend its number in the URL"),
    (said.ResponseError, "cluster support disabled", Refused, "is no cluster: mend the URL"),
    (said.OutOfMemoryError, "", Full, "has no memory left for this (maxmemory)"),
    (said.ReadOnlyError, "", ReadOnly, "takes no writes"),
    (said.ResponseError, "MISCONF", ReadOnly, "takes no writes"),
    (said.BusyLoadingError, "", Unavailable, "can't do it now"),
    (said.ClusterError, "", Unavailable, "can't do it now"),
    (said.AskError, "", Unavailable, "can't do it now"),
    (said.TryAgainError, "", Unavailable, "can't do it now"),
    (said.ResponseError, "NOREPLICAS", Unavailable, "can't do it now"),
    (said.ConnectionError, "max number of clients", Unavailable, "can't do it now"),
    (said.ConnectionError, "connecting to", Unavailable, "can't be reached"),
    (said.TimeoutError, "connecting to", Unavailable, "can't be reached"),
)
"""Errors of redis-py, a word in their text, and what they mean: nothing happened."""
_HOPS = 8
"""How often a command is sent on before it is given up: slots may be on the move."""
_MOMENT = 0.02
_SLOTS = [crc_hqx(b"%02x" % tag, 0) % 16_384 for tag in range(256)]
"""The slot of every tag. CRC-16 as Redis Cluster has it is `crc_hqx` beginning with 0."""
_FORM = (
    "the URL of a Redis store can't be used: write"
    " redis://[[user]:password@]host[:port][/database][?prefix=name], rediss:// for TLS, or"
    " redis+cluster://[[user]:password@]host[:port][,host[:port]...][?prefix=name], which has no"
    " databases; a password is percent-encoded, a prefix 1 to 64 characters of A-Z a-z 0-9 . _ -"
)


class Servers:
    """The servers of a URL. Raises `BadSetting`, which repeats no piece of a password."""

    def __init__(self, url: str, patience: float) -> None:
        try:
            parts = urlsplit(url)
            login, _, hosts = parts.netloc.rpartition("@")
            user, _, password = map(unquote, login.partition(":"))
            places = [urlsplit(f"//{host}") for host in hosts.split(",")]
            self._first = [(place.hostname or "", place.port or 6379) for place in places]
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
        except ValueError:
            raise BadSetting(_FORM) from None
        self.prefix = query.pop("prefix", "dolmen")
        self.cluster = parts.scheme == "redis+cluster"
        path = re.fullmatch(r"/?()" if self.cluster else r"/?([0-9]{0,4})", parts.path)
        right = all(host for host, _ in self._first) and (self.cluster or len(self._first) == 1)
        if path is None or not right or query or parts.fragment:
            raise BadSetting(_FORM)
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.prefix):
            raise BadSetting(_FORM)
        self.settings: dict[str, Any] = {
            "username": user or None,
            "password": password or None,
            "db": int(path[1] or 0),
            "ssl": parts.scheme == "rediss",
            "socket_timeout": patience,
            "socket_connect_timeout": patience,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self.durable = True
        self._servers: dict[Place, Server] = {}
        self._holders: list[Server | None] = [self._server(self._first[0])] * 256
        self._stale, self._learning = self.cluster, asyncio.Lock()

    async def ask(self, tag: int, commands: Sequence[Command], lane: str) -> list[Any]:
        """The replies to commands about keys of one tag."""
        if self._stale:
            await self._learn()
        server = self._holders[tag]
        if server is None:
            raise Unavailable(f"no server of the cluster holds slot {_SLOTS[tag]}")
        replies = await server.ask(lane, commands)
        for number, reply in enumerate(replies):
            if isinstance(reply, Exception):
                replies[number] = await self._again(server, commands[number], reply, lane)
        return replies

    async def _again(self, server: Server, command: Command, refusal: Exception, lane: str) -> Any:
        """The reply to a command that was refused, from where it belongs."""
        asking: list[Command] = []
        for hop in range(_HOPS if self.cluster else 0):
            if isinstance(refusal, said.AskError):  # or MovedError, a kind of it
                server = self._server((refusal.host or server.place[0], refusal.port))
                moved = isinstance(refusal, said.MovedError)
                self._stale = self._stale or moved
                asking = [] if moved else [("ASKING",)]
            elif isinstance(refusal, said.TryAgainError):
                await asyncio.sleep(_MOMENT * hop)
            else:
                break
            reply = (await server.ask(lane, [*asking, command]))[-1]
            if not isinstance(reply, Exception):
                return reply
            refusal = reply
        lost = not isinstance(refusal, said.ResponseError | said.AuthenticationError)
        if self.cluster and (lost or isinstance(refusal, said.ClusterDownError)):
            self._pass_over(server)
        if isinstance(refusal, said.ReadOnlyError):
            await server.disconnect()  # its name may mean another by now
        raise server.meaning(refusal, writes=command[0] in _CHANGES)

    def _pass_over(self, server: Server) -> None:
        """Ask the others of a cluster who holds what by now."""
        self._stale = True
        self._holders = [None if each is server else each for each in self._holders]

    async def _learn(self) -> None:
        """Ask the cluster which server holds what."""
        async with self._learning:
            if not self._stale:
                return
            known = [server.place for server in self._holders if server]
            for place in dict.fromkeys([*known, *self._first]):
                server = self._server(place)
                [slots] = await server.ask("reads", [("CLUSTER", "SLOTS")])
                if not isinstance(slots, Exception):
                    self._lay_out(slots, place[0])
                    return
                error = server.meaning(slots)
                if isinstance(error, Refused):
                    break
            raise error

    def _lay_out(self, slots: Sequence[Sequence[Any]], asked: str) -> None:
        self._holders, self._stale = [None] * 256, False
        for first, last, (host, port, *_), *_ in slots:
            for tag, slot in enumerate(_SLOTS):
                if first <= slot <= last:
                    self._holders[tag] = self._server((host.decode() if host else asked, port))
        self.note()

    async def holders(self) -> Sequence[Server]:
        """The servers that hold the blobs."""
        if self._stale:
            await self._learn()
        return list(dict.fromkeys(filter(None, self._holders)))

    def note(self) -> None:
        """Take note of whether all of them are durable."""
        self.durable = not any(server.lacking for server in set(self._holders) if server)

    def _server(self, place: Place) -> Server:
        if place not in self._servers:
            self._servers[place] = Server(place, self)
        return self._servers[place]

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of every connection."""
        for server in self._servers.values():
            await server.aclose()


class Server:
    """One server. `lacking` says why it is not durable, as far as is known."""

    def __init__(self, place: Place, servers: Servers) -> None:
        self.place, self._servers = place, servers
        host, port = place
        self.at = f"Redis at [{host}]:{port}" if ":" in host else f"Redis at {host}:{port}"
        self.lacking: list[str] = []
        self._client: Redis = Redis(
            host=host, port=port, redis_connect_func=self._greet, **servers.settings
        )
        self._lanes = {
            lane: Batches(self._together, at_once=at_once, most=most)
            for lane, (at_once, most) in _LANES.items()
        }

    def ask(self, lane: str, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The replies to commands, errors of redis-py among them."""
        return self._lanes[lane].ask(commands)

    async def _together(self, questions: Sequence[Sequence[Command]]) -> list[list[Any]]:
        commands = [command for question in questions for command in question]
        replies: list[Any]
        try:
            if not self._servers.cluster and all(command[0] == "GET" for command in commands):
                keys = [key for _, key in commands]  # for redis-py it takes a third of the time
                replies = await self._client.mget(keys)
            else:
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                replies = await pipeline.execute(raise_on_error=False)
        except _ERRORS as error:
            replies = [error] * len(commands)
        following = iter(replies)
        return [list(islice(following, len(question))) for question in questions]

    async def look(self) -> Mapping[str, Any]:
        """What it says of itself (INFO); brings `lacking` up to date."""
        settings = ("CONFIG GET", *_DURABLE)
        info, told = await self.ask("reads", [("INFO",), settings])
        if isinstance(info, said.NoPermissionError):
            info = {}
        if isinstance(info, Exception):
            raise self.meaning(info)
        if info.get("redis_mode") == "cluster" and not self._servers.cluster:
            raise Refused(f"{self.at} is in a cluster, whose URL begins with redis+cluster://")
        self._note({} if isinstance(told, Exception) else told)
        found: Mapping[str, Any] = info
        return found

    async def _greet(self, connection: Connection) -> None:
        """Log in, and see whether it flushes, before anything else is sent."""
        await connection.on_connect()
        try:
            await connection.send_command("CONFIG GET", *_DURABLE)
            words = [word.decode() for word in await connection.read_response()]
        except said.ResponseError:
            words = []  # the user may not ask
        self._note(dict(zip(words[::2], words[1::2], strict=True)))

    def _note(self, settings: Mapping[str, str]) -> None:
        self.lacking = [
            f"{setting} is {settings.get(setting, 'unknown')}, not {wanted}"
            for setting, wanted in _DURABLE.items()
            if settings.get(setting) != wanted
        ]
        self._servers.note()

    def meaning(self, error: Exception, *, writes: bool = False) -> DolmenError:
        """The error of the contract for one of redis-py's."""
        text = str(error)
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refused(
                f"{self.at} shows a certificate that is not trusted here ({cause.verify_message}):"
                " SSL_CERT_FILE may name its authority's"
            )
        for kind, word, meaning, what in _MEANINGS:
            if isinstance(error, kind) and word in text:
                return meaning(f"{self.at} {what}: {text}")
        if isinstance(error, said.ResponseError):
            return (OutcomeUnknown if writes else Unavailable)(f"{self.at} answered: {text}")
        if writes:
            return OutcomeUnknown(f"{self.at} was lost before it answered: {text}")
        return Unavailable(f"{self.at} can't be asked: {text}")

    async def disconnect(self) -> None:
        """Close the idle connections; the next command opens another."""
        await self._client.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Wait for what is under way, and close the connections."""
        for lane in self._lanes.values():
            await lane.aclose()
        await self._client.aclose()
