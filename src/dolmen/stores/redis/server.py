"""The way to one Redis server: opened when it is needed, and again after it was lost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from dolmen.errors import DolmenError, Unavailable
from dolmen.stores.redis.address import CLUSTER, Address, Place, at
from dolmen.stores.redis.connection import Ask, Connection
from dolmen.stores.redis.refusals import Refused
from dolmen.stores.redis.settings import State, asks


class Server:
    """A server, asked over one connection. Nothing is sent twice.

    `refused` gets the asks that the server refuses, with what it said. `told` gets what
    keeps the server from being durable, before any other reply; `lost` is called whenever
    it can't be reached. `patience` is how many seconds it may be silent.
    """

    def __init__(
        self,
        place: Place,
        address: Address,
        tls: ssl.SSLContext | None,
        *,
        patience: float,
        refused: Callable[[Server, Ask, str], None],
        told: Callable[[Place, list[str]], None],
        lost: Callable[[], None],
    ) -> None:
        self.place, self.where = place, f"Redis at {at(place)}"
        self._address, self._tls, self._patience = address, tls, patience
        self._refused, self._told, self._lost = refused, told, lost
        self._connection: Connection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._queue: list[Ask] = []
        self._closed = False
        self.failing = False
        """Whether it could not be reached the last time."""

    def send(self, ask: Ask) -> None:
        """Send a command as soon as there is a connection."""
        if self._closed:
            ask.fail(Unavailable("this store was closed"))
        elif self._connection is not None:
            self._connection.send(ask)
        else:
            self._queue.append(ask)
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._open())

    def renew(self) -> None:
        """Connect anew for what is sent from now on: the name may mean another server by now."""
        if self._connection is not None:
            self._connection.retire()
            self._connection = None

    async def aclose(self) -> None:
        """Take no more, wait for what is under way, and let go of the connection."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        self._closed = True
        if self._connection is not None:
            self._connection.retire()
            await asyncio.wait([self._connection.ended])

    async def _open(self) -> None:
        error: DolmenError | None = None
        try:
            async with asyncio.timeout(self._patience):
                self._connection = await self._connect()
        except DolmenError as refused:
            error = refused
        except ssl.SSLCertVerificationError as unverified:
            error = Refused(
                f"{self.where} has a certificate that this machine does not trust"
                f" ({unverified.verify_message}): SSL_CERT_FILE may name the authority's"
            )
        except (OSError, UnicodeError) as unreachable:
            why = str(unreachable) or f"no answer within {self._patience:g} seconds"
            error = Unavailable(f"{self.where} can't be asked: {why}")
        self.failing, self._opening = error is not None, None
        queue, self._queue = self._queue, []
        for ask in queue:
            if error is None:
                self.send(ask)
            else:
                ask.fail(type(error)(str(error)))
        if error is not None:
            self._lost()

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(
                self.where,
                patience=self._patience,
                refused=lambda ask, said: self._refused(self, ask, said),
                gone=self._gone,
            ),
            *self.place,
            ssl=self._tls,
        )
        try:
            # Only then anything else: without its SELECT, it would go to another database.
            for ask in self._greeting():
                connection.send(ask)
                await ask
            settings = asks()
            for ask in settings:
                connection.send(ask)
            self._take(State(self.where, await asyncio.gather(*settings, return_exceptions=True)))
        except BaseException:
            connection.abort("it was given up")
            raise
        return connection

    def _greeting(self) -> list[Ask]:
        address = self._address
        greeting = []
        if address.user or address.password:
            login = (*((address.user.encode(),) if address.user else ()), address.password.encode())
            refusal = "refuses the user or password: mend them in the store's URL"
            greeting.append(Ask((b"AUTH", *login), refusal=refusal))
        if address.database:
            refusal = "has no such database: mend the number at the end of the store's URL"
            greeting.append(Ask((b"SELECT", address.database), refusal=refusal))
        return greeting

    def _take(self, state: State) -> None:
        if state.of_cluster and self._address.scheme != CLUSTER:
            raise Refused(f"{self.where} is a node of a cluster: write {CLUSTER}:// in the URL")
        if state.of_cluster is False and self._address.scheme == CLUSTER:
            raise Refused(f"{self.where} is no cluster: write redis:// in the URL")
        self._told(self.place, state.lacking)

    def _gone(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection, self.failing = None, True
            self._lost()
