"""A connection to a server that answers requests in order: what Redis and memcached share.

It is opened when it is needed and again once it was lost. Requests go out together and are
never repeated: one that was sent and got no answer fails with `OutcomeUnknown` where it
may have changed something, everything else with `Unavailable`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.stores.driver import Refused

PATIENCE = 10.0
"""Seconds a server may take to be connected to, and for the answers to requests sent together."""
_READ_AHEAD = 1 << 20


class Request(NamedTuple):
    """What is sent, and whether it may change something."""

    sent: bytes
    writes: bool = False
    many_lines: bool = False
    """Whether a reply may have several lines (memcached)."""


class Lost(Exception):  # noqa: N818
    """The connection can't be used any more; the message says why."""


class Connection:
    """One connection to `host` and `port`. `where` names the server in messages.

    An engine says how a reply is read, and what has to be said first.
    """

    def __init__(
        self,
        where: str,
        host: str,
        port: int,
        *,
        patience: float = PATIENCE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.where = where
        self._host, self._port, self._patience, self._tls = host, port, patience, tls
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
            why = self._why(error)
            for request in requests[len(answers) :]:
                if request.writes:
                    unknown = f"{self.where} was lost before it answered: {why}"
                    answers.append(OutcomeUnknown(unknown))
                else:
                    answers.append(Unavailable(f"{self.where} can't be asked: {why}"))
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
        if not self.lost:
            return
        self.close()
        try:
            async with asyncio.timeout(self._patience):
                self.reader, self._writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self._tls, limit=_READ_AHEAD
                )
                await self.greet()
        except ssl.SSLCertVerificationError as untrusted:
            raise Refused(
                f"{self.where} shows a certificate that is not trusted here"
                f" ({untrusted.verify_message}): SSL_CERT_FILE may name its authority's"
            ) from untrusted
        except (OSError, EOFError, UnicodeError, Lost) as error:
            self.close()
            raise Unavailable(f"{self.where} can't be asked: {self._why(error)}") from error
        except BaseException:
            self.close()
            raise

    def _why(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return str(error) or f"no answer within {self._patience:g} seconds"
        return str(error) or "it closed the connection"
