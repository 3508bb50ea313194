"""The way to one Redis server: opened when it is needed, and again after it was lost."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

from dolmen.errors import DolmenError, Unavailable
from dolmen.stores.redis.address import Place, at
from dolmen.stores.redis.connection import Ask, Connection
from dolmen.stores.redis.refusals import Refused

if TYPE_CHECKING:
    from dolmen.stores.redis.link import Link


class Server:
    """A server of a link, asked over one connection. Nothing is sent twice.

    The link greets it before anything is sent, and is told what it refuses and when it
    can't be reached.
    """

    def __init__(self, link: Link, place: Place) -> None:
        self._link, self.place = link, place
        self.where = f"Redis at {at(place)}"
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
            async with asyncio.timeout(self._link.patience):
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
            why = str(unreachable) or f"no answer within {self._link.patience:g} seconds"
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
                self._link.lost()

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(
                self.where,
                patience=self._link.patience,
                refused=lambda ask, said: self._link.refused(self, ask, said),
                gone=self._gone,
            ),
            *self.place,
            ssl=self._link.tls,
        )
        try:
            await self._link.greet(self, connection)
        except BaseException:
            connection.abort("it was given up")
            raise
        return connection

    def _gone(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection, self.failing = None, True
            self._link.lost()
