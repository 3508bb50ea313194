"""Connections to a server that answers requests in order: what Redis and memcached share.

They are opened when they are needed and again once they were lost. Requests go out together and
are never repeated: one that was sent and got no answer fails with `OutcomeUnknown` where it
may have changed something, everything else with `Unavailable`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.stores.batches import Batches
from dolmen.stores.driver import Refused

PATIENCE = 10.0
"""Seconds a server may take to be connected to, and for the answers to requests sent together."""
_READ_AHEAD = 1 << 20
Place = tuple[str, int]
"""Host and port of a server."""


class Request(NamedTuple):
    """What is sent, and whether it may change something."""

    sent: bytes
    writes: bool = False
    many_lines: bool = False
    """Whether a reply may have several lines (memcached)."""


class Lost(Exception):  # noqa: N818
    """The connection can't be used any more; the message says why."""


def at(place: Place) -> str:
    """A place as it is written."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place_of(text: str, port: int) -> Place:
    """A place that is written `host` or `host:port`; raises `ValueError`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text:
        raise ValueError(text)
    return parts.hostname, port if parts.port is None else parts.port


class Connection:
    """One connection to a server, which messages call `where`.

    An engine says how a reply is read, and what has to be said first.
    """

    tls: ssl.SSLContext | None = None

    def __init__(self, where: str, place: Place, patience: float) -> None:
        self.where, self.place, self._patience = where, place, patience
        self._writer: asyncio.StreamWriter | None = None
        self.reader = asyncio.StreamReader()

    async def greet(self) -> None:
        """Log in, and learn what the server is; before anything else is sent."""

    async def reply(self, request: Request) -> Any:
        """Read the reply to a request; raises `Lost` for what makes no sense."""
        raise NotImplementedError

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """The reply, or the error, for each of these requests."""
        try:
            if self.lost:
                await self._open()
        except DolmenError as error:
            return [error] * len(requests)
        return await self.converse(requests)

    async def converse(self, requests: Sequence[Request]) -> list[Any]:
        """`exchange` over the connection that is open."""
        writer, answers = self._writer, list[Any]()
        assert writer is not None
        try:
            async with asyncio.timeout(self._patience):
                writer.write(b"".join([request.sent for request in requests]))
                for request in requests:
                    answers.append(await self.reply(request))
        except (OSError, EOFError, TimeoutError, Lost) as error:
            self.close()
            unanswered = Unavailable(f"{self.where} can't be asked: {self._why(error)}")
            unknown = f"{self.where} was lost before it answered: {self._why(error)}"
            for request in requests[len(answers) :]:
                answers.append(OutcomeUnknown(unknown) if request.writes else unanswered)
        except BaseException:
            self.close()  # replies to come would be taken for those to later requests
            raise
        return answers

    def close(self) -> None:
        """Let go of the connection; the next request opens another."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    @property
    def lost(self) -> bool:
        """Whether there is no connection, as far as is known."""
        ended = self.reader.at_eof() or self.reader.exception() is not None
        return ended or self._writer is None

    async def _open(self) -> None:
        self.close()
        try:
            async with asyncio.timeout(self._patience):
                self.reader, self._writer = await asyncio.open_connection(
                    *self.place, ssl=self.tls, limit=_READ_AHEAD
                )
                await self.greet()
        except BaseException as error:
            self.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise Refused(
                    f"{self.where} shows a certificate that is not trusted here"
                    f" ({error.verify_message}): SSL_CERT_FILE may name its authority's"
                ) from error
            if isinstance(error, OSError | EOFError | UnicodeError | Lost):
                raise Unavailable(f"{self.where} can't be asked: {self._why(error)}") from error
            raise

    def _why(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return str(error) or f"no answer within {self._patience:g} seconds"
        return str(error) or "it closed the connection"


class Lane(Batches[Sequence[Request], list[Any]]):
    """Requests to one server over up to so many connections.

    What is asked at once comes together, up to `most` times a round trip. What comes back are
    the replies to the requests, errors among them.
    """

    def __init__(self, connect: Callable[[], Connection], *, connections: int, most: int) -> None:
        super().__init__(self._exchange, at_once=connections, most=most)
        self._connect = connect
        self.connections: list[Connection] = []
        self._idle: list[Connection] = []

    async def _exchange(self, questions: Sequence[Sequence[Request]]) -> list[list[Any]]:
        if not self._idle:
            self.connections.append(self._connect())
            self._idle.append(self.connections[-1])
        connection = self._idle.pop()
        try:
            replies = await connection.exchange([each for some in questions for each in some])
        finally:
            self._idle.append(connection)
        following = iter(replies)
        return [list(islice(following, len(some))) for some in questions]

    def disconnect(self) -> None:
        """Close the connections; the next request opens another."""
        for connection in self.connections:
            connection.close()

    async def aclose(self) -> None:
        """See `Batches.aclose`."""
        await super().aclose()
        self.disconnect()
