"""Redis servers as the driver asks them: one, or a cluster of them.

Each server is asked over a few connections. What is asked at once shares a round trip. Writes
take several connections, for Redis flushes once for what it reads at a time; what moves much
data has its own, so that nothing small waits behind it. hiredis, Redis's own parser, packs
and reads the protocol (RESP 2); redis-py above it reached a third of its speed.

In a cluster the layout is asked for when the first command comes, and again after a server
was lost or sent us elsewhere. A command that was refused (MOVED, ASK, TRYAGAIN, NOSCRIPT) was
not carried out and goes on to where it belongs.

Read first: `dolmen.stores.connection`, `dolmen.stores.batches`, `dolmen.stores.redis_settings`.
"""

from __future__ import annotations

import asyncio
import ssl
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hiredis import ProtocolError, Reader, ReplyError, pack_command

from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unavailable
from dolmen.store import Condition
from dolmen.stores.connection import Connection, Lane, Lost, Place, Request, at
from dolmen.stores.driver import Refused
from dolmen.stores.redis_settings import CLUSTER, SETTINGS, Address, State, state_of, together

Command = tuple[bytes | memoryview | int, ...]

_LANES = {"reads": (2, 128), "writes": (8, 8), "bulk": (2, 4)}
"""Connections of each kind, and how many questions share a round trip."""
_CHANGES = frozenset((b"EVAL", b"EVALSHA", b"SET", b"UNLINK"))
_PASSING = (
    *("LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "MOVED", "ASK", "TRYAGAIN"),
    "ERR max number of clients",
)
_NOT_PERMITTED = ("NOAUTH", "NOPERM", "DENIED", "WRONGPASS", "ERR AUTH", "ERR Client sent AUTH")
_MEANINGS: tuple[tuple[tuple[str, ...], type[DolmenError], str], ...] = (
    (_PASSING, Unavailable, "can't do it now"),
    (("OOM",), Full, "has no memory left for this (maxmemory)"),
    (("READONLY", "MISCONF"), ReadOnly, "takes no writes"),
    (_NOT_PERMITTED, Refused, "does not permit it; mend the user or password in the store's URL"),
    (("ERR DB index",), Refused, "has no such database: mend the number at the end of the URL"),
)
"""What refusals begin with, and what they mean."""
_HOPS = 8
"""How often a command is sent on before it is given up: slots may be on the move."""
_MOMENT = 0.02
_SLOTS = [crc_hqx(b"%02x" % tag, 0) % 16_384 for tag in range(256)]
"""The slot of every tag. CRC-16 as Redis Cluster has it is `crc_hqx` beginning with 0."""


class Servers:
    """The servers of an address, and the one script that they run.

    `durable` is called with whether all of them are.
    """

    def __init__(
        self, address: Address, script: bytes, durable: Callable[[bool], None], patience: float
    ) -> None:
        self.address, self.patience = address, patience
        self._script, self._durable = script, durable
        self.tls = ssl.create_default_context() if address.scheme == "rediss" else None
        self._servers: dict[Place, _Server] = {}
        self._flushing: dict[Place, bool] = {}
        self._cluster = address.scheme == CLUSTER
        self._holders: list[Place | None] = [address.servers[0]] * 256
        self._stale, self._learning = self._cluster, asyncio.Lock()

    async def ask(self, tag: int, commands: Sequence[Command], lane: str) -> list[Any]:
        """The replies to commands about keys of one tag."""
        if self._stale:
            await self._learn()
        place = self._holders[tag]
        if place is None:
            raise Unavailable(f"{self.address}: no server of the cluster holds its slot")
        server = self._server(place)
        replies: list[Any] = await server.ask(lane, commands)
        for number, reply in enumerate(replies):
            if isinstance(reply, Exception):
                replies[number] = await self._again(server, commands[number], reply, lane)
        return replies

    async def _again(self, server: _Server, command: Command, refusal: Exception, lane: str) -> Any:
        """The reply to a command that was refused, from where it belongs."""
        asking: list[Command] = []
        for hop in range(_HOPS):
            if isinstance(refusal, DolmenError):
                self._pass_over(server)
                raise refusal
            code, *rest = str(refusal).split(" ")
            if code == "NOSCRIPT":
                command = (b"EVAL", self._script, *command[2:])
            elif code in ("MOVED", "ASK") and self._cluster:
                host, _, port = rest[1].rpartition(":")
                server = self._server((host or server.place[0], int(port)))
                self._stale = self._stale or code == "MOVED"
                asking = [(b"ASKING",)] if code == "ASK" else []
            elif code == "TRYAGAIN":
                await asyncio.sleep(_MOMENT * hop)
            else:
                break
            reply = (await server.ask(lane, [*asking, command]))[-1]
            if not isinstance(reply, Exception):
                return reply
            refusal = reply
        if str(refusal).startswith("CLUSTERDOWN"):
            self._pass_over(server)  # it may be cut off
        if str(refusal).startswith("READONLY"):
            server.disconnect()  # its name may mean another by now
        raise meaning(server.where, str(refusal), writes=command[0] in _CHANGES)

    async def _learn(self) -> None:
        """Ask the cluster which server holds what."""
        async with self._learning:
            if not self._stale:
                return
            places = dict.fromkeys([*filter(None, self._holders), *self.address.servers])
            error: Exception = Unavailable(f"{self.address}: no server is known")
            for place in places:
                server = self._server(place)
                [slots] = await server.ask("reads", [(b"CLUSTER", b"SLOTS")])
                if not isinstance(slots, Exception):
                    self._lay_out(slots, place[0])
                    return
                error = slots
                if isinstance(error, ReplyError):
                    error = meaning(server.where, str(error))
                if isinstance(error, Refused):
                    break
            raise error

    def _pass_over(self, server: _Server) -> None:
        """Ask the others of a cluster who holds what by now."""
        if self._cluster:
            self._stale = True
            self._holders = [None if each == server.place else each for each in self._holders]

    def _lay_out(self, slots: Sequence[Sequence[Any]], asked: str) -> None:
        self._holders, self._stale = [None] * 256, False
        for first, last, (host, port, *_), *_ in slots:
            for tag, slot in enumerate(_SLOTS):
                if first <= slot <= last:
                    self._holders[tag] = (host.decode() if host else asked, port)
        for place in self._flushing.keys() - set(self._holders):
            del self._flushing[place]

    async def condition(self) -> Condition:
        """How the servers are doing; raises `Unavailable` where none can be asked."""
        if self._stale:
            with suppress(Unavailable):
                await self._learn()
        places = dict.fromkeys(filter(None, self._holders)) or self.address.servers
        asked = (self._server(place).condition() for place in places)
        conditions, errors = list[Condition](), list[DolmenError]()
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, DolmenError):
                errors.append(answer)
                conditions.append(Condition(writable=False, reasons=[str(answer)]))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                conditions.append(answer)
        if len(errors) == len(conditions):
            raise errors[0]
        return together(conditions)

    def note(self, place: Place, state: State) -> None:
        """Take note of what a server is set to."""
        self._flushing[place] = state.durable
        self._durable(all(self._flushing.values()))

    def _server(self, place: Place) -> _Server:
        server = self._servers.get(place)
        if server is None:
            server = self._servers[place] = _Server(self, place)
        return server

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of every connection."""
        for server in self._servers.values():
            for lane in server.lanes.values():
                await lane.aclose()


class _Server:
    """One server, asked over its lanes."""

    def __init__(self, servers: Servers, place: Place) -> None:
        self.place, self.where, self._servers = place, f"Redis at {at(place)}", servers
        self.lanes = {
            lane: Lane(lambda: _Connection(self._servers, self), connections=connections, most=most)
            for lane, (connections, most) in _LANES.items()
        }

    def ask(self, lane: str, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The replies to commands, errors among them."""
        return self.lanes[lane].ask(list(map(_request, commands)))

    async def condition(self) -> Condition:
        """How it is doing."""
        return self.learn(await self.ask("reads", SETTINGS)).condition

    def learn(self, replies: Sequence[Any]) -> State:
        """Take note of replies to `SETTINGS`."""
        told: list[Any] = []
        for reply in replies:
            if isinstance(reply, ReplyError):
                if not str(reply).startswith(("NOPERM", "ERR unknown")):
                    raise meaning(self.where, str(reply))
                told.append(None)  # the user may not ask
            elif isinstance(reply, Exception):
                raise reply
            else:
                told.append(reply)
        state = state_of(self.where, told)
        self._servers.note(self.place, state)
        return state

    def disconnect(self) -> None:
        """Close the connections; the next command opens another."""
        for lane in self.lanes.values():
            lane.disconnect()


class _Connection(Connection):
    """A connection that logs in, and sees what the server is, before anything else."""

    def __init__(self, servers: Servers, server: _Server) -> None:
        super().__init__(server.where, server.place, servers.patience)
        self.tls, self._address, self._server = servers.tls, servers.address, server
        self._parser = Reader()

    async def greet(self) -> None:
        """See `Connection.greet`."""
        self._parser = Reader()
        address = self._address
        login: list[Command] = []
        if address.user or address.password:
            words = [word.encode() for word in (address.user, address.password)]
            login.append((b"AUTH", *words[not address.user :]))
        if address.database:
            login.append((b"SELECT", address.database))
        replies = await self.converse(list(map(_request, [*login, *SETTINGS])))
        for reply in replies[: len(login)]:
            if isinstance(reply, Exception):
                raise reply if isinstance(reply, DolmenError) else meaning(self.where, str(reply))
        mode = self._server.learn(replies[len(login) :]).mode
        if mode not in ("", "cluster" if address.scheme == CLUSTER else "standalone"):
            raise Refused(
                f"{self.where} runs in mode {mode}: the URL of a cluster begins with"
                f" {CLUSTER}://, that of a single server with redis:// or rediss://"
            )

    async def reply(self, request: Request) -> Any:  # noqa: ARG002
        """See `Connection.reply`."""
        try:
            while (reply := self._parser.gets()) is False:
                data = await self.reader.read(65_536)
                if not data:
                    raise Lost("it closed the connection")
                self._parser.feed(data)
        except ProtocolError as error:
            raise Lost(f"it does not speak the protocol of Redis ({error})") from error
        return reply


def _request(command: Command) -> Request:
    return Request(pack_command(command), command[0] in _CHANGES)  # type: ignore[arg-type]


def meaning(where: str, said: str, *, writes: bool = False) -> DolmenError:
    """The error for a command that the server called `where` refused in these words.

    For a write it is `OutcomeUnknown` unless they say that nothing happened.
    """
    for beginnings, error, told in _MEANINGS:
        if said.startswith(beginnings):
            return error(f"{where} {told}: {said}")
    return (OutcomeUnknown if writes else Unavailable)(f"{where} answered: {said}")
