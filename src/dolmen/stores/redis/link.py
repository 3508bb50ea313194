"""Where commands go: the server that holds the keys of a tag."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from dolmen.errors import Unavailable
from dolmen.store import Condition
from dolmen.stores.redis.address import Address, Place
from dolmen.stores.redis.connection import Ask
from dolmen.stores.redis.refusals import meaning
from dolmen.stores.redis.scripts import SOURCES
from dolmen.stores.redis.server import Server
from dolmen.stores.redis.settings import State, asks, together

PATIENCE = 10.0
"""Seconds a server may take to be connected to, or for its next bytes while it owes some."""


class Link:
    """The one server at an address. `told` gets whether all there is is durable.

    What moves much goes over a connection of its own, so that nothing small waits behind it.
    """

    def __init__(
        self, address: Address, *, told: Callable[[bool], None], patience: float = PATIENCE
    ) -> None:
        self.address, self._told, self._patience = address, told, patience
        self._tls = ssl.create_default_context() if address.scheme == "rediss" else None
        self._servers: dict[tuple[Place, bool], Server] = {}
        self._lacking: dict[Place, list[str]] = {}

    def ask(self, tag: int, *command: bytes | memoryview | int, bulk: bool = False) -> Ask:
        """Send a command that changes nothing to the server of this tag."""
        ask = Ask(command, tag, bulk=bulk)
        self._send(ask)
        return ask

    def write(self, tag: int, *command: bytes | memoryview | int, bulk: bool = False) -> Ask:
        """Send a command that may change something to the server of this tag."""
        ask = Ask(command, tag, writes=True, bulk=bulk)
        self._send(ask)
        return ask

    async def condition(self) -> Condition:
        """How the servers are doing; raises `Unavailable` where none can be asked."""
        asked = [(server, asks()) for server in await self._all()]
        for server, wanted in asked:
            for ask in wanted:
                server.send(ask)
        conditions, errors = [], []
        for server, wanted in asked:
            try:
                state = State(server.where, await asyncio.gather(*wanted, return_exceptions=True))
            except Unavailable as error:
                errors.append(error)
                conditions.append(Condition(writable=False, reasons=[str(error)]))
            else:
                self._found(server.place, state.lacking)
                conditions.append(state.condition)
        if len(errors) == len(asked):
            raise errors[0]
        return together(conditions)

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of every connection."""
        for server in self._servers.values():
            await server.aclose()

    def _send(self, ask: Ask) -> None:
        self._server(self.address.servers[0], ask.bulk).send(ask)

    async def _all(self) -> list[Server]:
        return [self._server(self.address.servers[0])]

    def _server(self, place: Place, bulk: bool = False) -> Server:
        server = self._servers.get((place, bulk))
        if server is None:
            server = self._servers[place, bulk] = Server(
                place,
                self.address,
                self._tls,
                patience=self._patience,
                refused=self._refused,
                told=self._found,
                lost=self._lost,
            )
        return server

    def _found(self, place: Place, lacking: list[str]) -> None:
        self._lacking[place] = lacking
        self._told(not any(self._lacking.values()))

    def _refused(self, server: Server, ask: Ask, said: str) -> None:
        """Settle an ask that got an error for a reply, or send it otherwise."""
        if said.startswith("NOSCRIPT"):
            ask.command = (b"EVAL", SOURCES[ask.command[1]], *ask.command[2:])
            self._send(ask)
            return
        if said.startswith("READONLY"):
            server.renew()
        ask.fail(meaning(server.where, ask, said))

    def _lost(self) -> None:
        """Called when a server can't be reached."""
