"""The way to one Redis server: opened when it is needed, and again after it was lost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from dolmen.errors import DolmenError, Unavailable
from dolmen.stores.redis.address import Place, at
from dolmen.stores.redis.connection import Ask, Connection
from dolmen.stores.redis.refusals import Refused


class Server:
    """A server, asked over one connection. Nothing is sent twice.

    `greet` says what goes first over every connection. `refused` gets the asks that the
    server refuses, with what it said; `lost` is called when it can't be reached. It may be
    silent for `patience` seconds.
    """

    def __init__(
        self,
        place: Place,
        tls: ssl.SSLContext | None,
        *,
        patience: float,
        greet: Callable[[Server, Connection], Awaitable[None]],
        refused: Callable[[Server, Ask, str], None],
        lost: Callable[[], None],
    ) -> None:
        self.place, self.where = place, f"Redis at {at(place)}"
        self._tls, self._patience = tls, patience
        self._greet, self._refused, self._lost = greet, refused, lost
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

    def leave(self, why: str) -> None:
        """Close the connection; the next command opens another."""
        if self._connection is not None:
            self._connection.abort(why)

    async def aclose(self) -> None:
        """Take no more, wait for what is under way, and close the connection."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        self._closed = True
        if self._connection is not None:
            await self._connection.finish()

    async def _open(self) -> None:
        error: DolmenError | None = Unavailable(f"{self.where} can't be asked")
        try:
            async with asyncio.timeout(self._patience):
                self._connection = await self._connect()
            error = None
        except DolmenError as refused:
            error = refused
        except ssl.SSLCertVerificationError as untrusted:
            error = Refused(
                f"{self.where} shows a certificate that is not trusted here"
                f" ({untrusted.verify_message}): SSL_CERT_FILE may name its authority's"
            )
        except (OSError, UnicodeError) as unreachable:
            why = str(unreachable) or f"no answer within {self._patience:g} seconds"
            error = Unavailable(f"{self.where} can't be asked: {why}")
        finally:
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
            await self._greet(self, connection)
        except BaseException:
            connection.abort("it was given up")
            raise
        return connection

    def _gone(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection, self.failing = None, True
            self._lost()
