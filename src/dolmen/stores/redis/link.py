"""Which server holds a tag: always the same one, or as a cluster says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError, TryAgainError

from dolmen.errors import DolmenError, Unavailable
from dolmen.stores.redis.address import CLUSTER, Address
from dolmen.stores.redis.server import Ask, Command, Refused, Reply, Server

TIMEOUT = 10.0
"""Seconds for one pipeline, connecting included."""
_HOPS = 8
"""How often a command is sent on before it is given up: slots may be on the move."""
_SLOTS = [key_slot(b"%02x" % tag) for tag in range(256)]


class Link:
    """The servers at an address: commands by tag, in shared pipelines.

    A cluster is asked for its layout when the first command comes, and again after a
    server was lost or sent us elsewhere.
    """

    def __init__(self, address: Address, *, timeout: float = TIMEOUT) -> None:
        self._address, self._timeout = address, timeout
        self._seeds = [self._server(host, port) for host, port in address.servers]
        self._servers: dict[tuple[str, int], Server] = dict(
            zip(address.servers, self._seeds, strict=True)
        )
        self._holders: list[Server] = self._seeds * 256
        self._cluster = address.scheme == CLUSTER
        self._stale = self._cluster
        self._learning: asyncio.Task[None] | None = None
        self._held_up: list[Ask] = []

    def _server(self, host: str, port: int) -> Server:
        address = self._address
        pool: ConnectionPool = ConnectionPool(
            SSLConnection if address.scheme == "rediss" else Connection,
            host=host,
            port=port,
            db=address.database,
            username=address.user,
            password=address.password,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,  # a pipeline has one deadline, see `Server`
            socket_connect_timeout=None,
        )
        where = f"Redis at {host}:{port}"
        return Server(where, pool, timeout=self._timeout, redirect=self._redirect, lost=self._doubt)

    def ask(self, tag: int, *command: bytes | memoryview | int) -> asyncio.Future[Reply]:
        """Send a command that changes nothing to the server of this tag."""
        return self._ask(Ask(tag, command, writes=False))

    def write(self, tag: int, *command: bytes | memoryview | int) -> asyncio.Future[Reply]:
        """Send a command that may change something to the server of this tag."""
        return self._ask(Ask(tag, command, writes=True))

    async def everywhere(self, *commands: Command) -> list[tuple[str, list[Reply]]]:
        """Send commands to every server that holds a tag: where it is, and its replies.

        What a server refuses stands in place of the reply. Raises `Unavailable` where one
        can't be asked.
        """
        if self._stale:
            await self._learn()
        answers = []
        for server in dict.fromkeys(self._holders):
            asks = [Ask(0, command, writes=False) for command in commands]
            for ask in asks:
                server.ask(ask)
            replies = await asyncio.gather(*(ask.future for ask in asks), return_exceptions=True)
            for reply in replies:
                if isinstance(reply, Unavailable) and not isinstance(reply, Refused):
                    raise reply
            answers.append((server.where, replies))
        return answers

    async def aclose(self) -> None:
        """Wait for what was asked, and let go of every connection."""
        if self._learning is not None:
            await asyncio.wait([self._learning])
        for server in self._servers.values():
            await server.aclose()

    # Clusters

    def _ask(self, ask: Ask) -> asyncio.Future[Reply]:
        if self._stale:
            self._held_up.append(ask)
            if self._learning is None:
                self._learning = asyncio.ensure_future(self._learn_and_ask())
        else:
            self._holders[ask.tag].ask(ask)
        return ask.future

    def _doubt(self) -> None:
        self._stale = self._cluster

    async def _learn_and_ask(self) -> None:
        error: DolmenError | None = None
        try:
            await self._learn()
        except DolmenError as unknown:
            error = unknown
        held_up, self._held_up, self._learning = self._held_up, [], None
        for ask in held_up:
            if error is not None:
                ask.fail(error)
            else:
                self._holders[ask.tag].ask(ask)

    async def _learn(self) -> None:
        """Ask the cluster which server holds which slots; raises `Unavailable`."""
        error: Exception = Unavailable("no server of the cluster is known")
        for (host, _), server in sorted(self._servers.items(), key=lambda item: item[1].failing):
            ask = Ask(0, (b"CLUSTER", b"SLOTS"), writes=False)
            server.ask(ask)
            try:
                self._lay_out(await ask.future, host)
            except Refused:
                raise
            except DolmenError as unknown:
                error = unknown
            else:
                self._stale = False
                return
        raise error

    def _lay_out(self, slots: Sequence[Sequence[Any]], asked: str) -> None:
        holders: dict[int, Server] = {}
        for first, last, (host, port, *_), *_ in slots:
            server = self._at(host.decode() if host else asked, port)
            holders.update((tag, server) for tag in range(256) if first <= _SLOTS[tag] <= last)
        if len(holders) < 256:
            raise Unavailable(f"{self._address}: no server of the cluster holds some of its slots")
        self._holders = [holders[tag] for tag in range(256)]

    def _at(self, host: str, port: int) -> Server:
        server = self._servers.get((host, port))
        if server is None:
            server = self._servers[host, port] = self._server(host, port)
        return server

    def _redirect(self, ask: Ask, error: ResponseError) -> bool:
        """Ask where a server of a cluster sends us; False for any other error."""
        if not (self._cluster and isinstance(error, AskError | TryAgainError | ClusterDownError)):
            return False
        ask.hops += 1
        if isinstance(error, ClusterDownError) or ask.hops > _HOPS:
            self._doubt()
            ask.fail(Unavailable(f"{self._address}: the cluster can't be asked now: {error}"))
            return True
        if isinstance(error, AskError):
            moved = isinstance(error, MovedError)
            if moved:
                self._doubt()
            ask.asking = not moved
            self._at(error.host, error.port).ask(ask)
        else:
            asyncio.get_running_loop().call_later(0.05 * ask.hops, partial(self._ask, ask))
        return True
