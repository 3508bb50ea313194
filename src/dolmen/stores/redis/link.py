"""Where commands go: the server that holds the keys of a tag."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from dolmen.errors import Unavailable
from dolmen.store import Condition
from dolmen.stores.redis.address import CLUSTER, Address, Place
from dolmen.stores.redis.connection import Ask, Connection, Word
from dolmen.stores.redis.refusals import Refused, meaning
from dolmen.stores.redis.scripts import SOURCES
from dolmen.stores.redis.server import Server
from dolmen.stores.redis.settings import State, asks, together

PATIENCE = 10.0
"""Seconds a server may take to be connected to, or for its next bytes while it owes some."""
_WRITERS = 4
_BULK = 1 + _WRITERS


class Link:
    """The one server at an address. `told` gets whether all there is is durable.

    Reads share a connection, and so a write of theirs to the socket. Writes take several:
    Redis flushes once for what it reads at a time, which is 16 KiB of each. What moves much
    has one of its own, so that nothing small waits behind it.
    """

    def __init__(self, address: Address, *, told: Callable[[bool], None], patience: float) -> None:
        self.address, self._told, self.patience = address, told, patience
        self.tls = ssl.create_default_context() if address.scheme == "rediss" else None
        self._servers: dict[tuple[Place, int], Server] = {}
        self._durable: dict[Place, bool] = {}

    def ask(self, tag: int, *command: Word, writes: bool = False, bulk: bool = False) -> Ask:
        """Send a command to the server of this tag; `writes` when it may change something."""
        lane = _BULK if bulk else 1 + tag % _WRITERS if writes else 0
        ask = Ask(*command, tag=tag, writes=writes, lane=lane)
        self._send(ask)
        return ask

    async def condition(self) -> Condition:
        """How the servers are doing; raises `Unavailable` where none can be asked."""
        states = await asyncio.gather(
            *(self._state(server, server.send) for server in await self._all()),
            return_exceptions=True,
        )
        some = any(isinstance(state, State) for state in states)
        conditions = []
        for state in states:
            if isinstance(state, State):
                conditions.append(state.condition)
            elif some and isinstance(state, Unavailable):
                conditions.append(Condition(writable=False, reasons=[str(state)]))
            else:
                raise state
        return together(conditions)

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of every connection."""
        for server in self._servers.values():
            await server.aclose()

    async def greet(self, server: Server, connection: Connection) -> None:
        """Log in, and see what it is. Only then anything else: it could go to another database."""
        address = self.address
        if address.user or address.password:
            login = [word.encode() for word in (address.user, address.password)]
            refusal = "refuses the user or password: mend them in the store's URL"
            connection.send(ask := Ask(b"AUTH", *login[not address.user :], refusal=refusal))
            await ask
        if address.database:
            refusal = "has no such database: mend the number at the end of the store's URL"
            connection.send(ask := Ask(b"SELECT", address.database, refusal=refusal))
            await ask
        state = await self._state(server, connection.send)
        if state.mode not in ("", "cluster" if address.scheme == CLUSTER else "standalone"):
            raise Refused(
                f"{server.where} runs in mode {state.mode}: the URL of a cluster begins with"
                f" {CLUSTER}://, that of a single server with redis:// or rediss://"
            )

    def refused(self, server: Server, ask: Ask, said: str) -> None:
        """Settle an ask that got an error for a reply, or send it otherwise."""
        if said.startswith("NOSCRIPT"):
            ask.command = (b"EVAL", SOURCES[ask.command[1]], *ask.command[2:])
            self._send(ask)
            return
        if ask.optional and said.startswith(("NOPERM", "ERR")):
            ask.settle(None)
            return
        if said.startswith("READONLY"):
            server.leave("it became a replica")  # its name may mean another by now
        ask.fail(meaning(server.where, ask, said))

    def lost(self) -> None:
        """Called when a server can't be reached."""

    async def _state(self, server: Server, send: Callable[[Ask], None]) -> State:
        """What a server is set to and how it is doing, and taken note of."""
        wanted = asks()
        for ask in wanted:
            send(ask)
        state = State(server.where, await asyncio.gather(*wanted))
        self._durable[server.place] = not state.lacking
        self._told(all(self._durable.values()))
        return state

    def _send(self, ask: Ask) -> None:
        self._server(self.address.servers[0], ask.lane).send(ask)

    async def _all(self) -> list[Server]:
        return [self._server(self.address.servers[0])]

    def _server(self, place: Place, lane: int = 0) -> Server:
        server = self._servers.get((place, lane))
        if server is None:
            server = self._servers[place, lane] = Server(self, place)
        return server
