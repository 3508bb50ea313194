"""The client's side of a connection: one request out, one response in.

Read `connection` first. Whatever is not a well-formed HTTP/1.1 response whose end can be told
from a cut closes the connection with an error.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Protocol

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.http.body import Body, BodyStream
from dolmen.http.coalescer import WriteCoalescer
from dolmen.http.connection import Connection, Waiting
from dolmen.http.head import Head, Lines, read_headers, read_status_line
from dolmen.http.limits import Timeouts
from dolmen.http.messages import Headers
from dolmen.http.problems import HTTPError

_HEAD_LIMIT = 64 * 1024
_WHOLE_UP_TO = 64 * 1024
_NO_LIMIT = 1 << 62
_INTERIM_LIMIT = 16


class NotSent(Unavailable):
    """A kept connection was closed before anything came of the request, which may be sent again."""


class ClientResponse:
    """A response: `status`, `headers` and `body`.

    A body that has not arrived whole is read from `body`, or given up with
    `close()`, also by leaving `async with`; giving up closes the connection.
    """

    __slots__ = ("_connection", "_number", "body", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: Body,
        connection: ClientConnection | None,
        number: int,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self._connection = connection
        self._number = number

    def close(self) -> None:
        """Read no more. Nothing happens when the body has been read to its end."""
        if self._connection is not None:
            self._connection.give_up(self._number)
            self._connection = None

    async def __aenter__(self) -> ClientResponse:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ClientResponse {self.status}>"


class Owner(Protocol):
    """What a connection needs of the client it belongs to."""

    name: str
    timeouts: Timeouts
    loop: asyncio.AbstractEventLoop
    coalescer: WriteCoalescer
    lines: Lines

    def release(self, connection: ClientConnection) -> None:
        """Take back a connection that can carry another request."""

    def forget(self, connection: ClientConnection) -> None:
        """A connection ends: called at the latest when it is lost."""


class ClientConnection(Connection):
    """Sends requests one after the other. `number` counts them, `busy` is whether one is under way.

    `sent` is set by the caller when the whole request has been written.
    """

    __slots__ = (
        "_continued", "_head_only", "_interim", "_owner", "_reads", "_response", "_status",
        "busy", "number", "sent",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        idle = owner.timeouts.idle
        super().__init__(owner.loop, whole=_WHOLE_UP_TO, largest=_NO_LIMIT, patience=idle)
        self._owner = owner
        self._response: asyncio.Future[ClientResponse] | None = None
        self._continued: asyncio.Future[None] | None = None
        self._head_only = self._reads = self.sent = self.busy = False
        self._status = self._interim = self.number = 0

    def begin(self, *, head_only: bool, reads: bool) -> asyncio.Future[ClientResponse]:
        """Take on a request; the caller then writes it to `transport` and awaits the future."""
        self._head_only, self._reads = head_only, reads
        self._status = self._interim = 0
        self.busy, self.sent = True, False
        self.number += 1
        self._response = response = self.loop.create_future()
        return response

    def expect_continue(self) -> asyncio.Future[None]:
        """A future that is done when the server asks for the body, or answers already."""
        self._continued = self.loop.create_future()
        return self._continued

    def give_up(self, number: int) -> None:
        """Close the connection, if the request of this number is still under way."""
        if self.busy and self.number == number:
            self._owner.forget(self)
            self.transport.abort()

    def abandon(self, stream: BodyStream) -> None:
        # This may be a finalizer, on any thread.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._abandoned, stream)

    def _abandoned(self, stream: BodyStream) -> None:
        if self.body is stream:
            self.give_up(self.number)

    # Responses.

    def ready(self) -> bool:
        # What came before the request went out can't be its response.
        if not self.busy or self._owner.coalescer.holds(self.transport):
            self._fail("sent what nobody asked for")
        return self.busy and not self._status

    def take_beginning(self, *, good: bool) -> bool:
        if not good or len(self.held) > _HEAD_LIMIT:
            self._fail("sent something else than an HTTP response")
        return False

    def take_head(self, data: bytes) -> bool:
        at = data.find(b"\r\n")
        try:
            status, http11 = read_status_line(data[:at])
            if status < 200:
                self._take_interim(status)
                return False
            head = Head(read_headers(data[at:], self._owner.lines), http11=http11)
        except HTTPError as error:
            self._fail(f"sent a malformed response: {error.detail}")
            return False
        if self._head_only or status in (204, 304):
            head.length, head.chunked = 0, False
        elif head.length is None and not head.chunked:
            self._fail("sent a response without a length, whose end can't be told from a cut")
            return False
        self._status = status
        self.head = head
        return True

    def _take_interim(self, status: int) -> None:
        self._interim += 1
        if status == 101 or self._interim > _INTERIM_LIMIT:
            self._fail("sent interim responses that were not asked for")
        elif status == 100:
            self._wake_continued()

    def take_message(self, body: Body) -> None:
        whole = self.body is None
        connection = None if whole else self
        response = ClientResponse(self._status, self.head.headers, body, connection, self.number)
        if whole:
            self._done()
        self._settle(response)

    def _settle(self, outcome: ClientResponse | Exception) -> None:
        """Give the waiting caller its response, or the error instead."""
        response, self._response = self._response, None
        if response is not None and not response.done():
            if isinstance(outcome, ClientResponse):
                response.set_result(outcome)
            else:
                response.set_exception(outcome)
        self._wake_continued()
        self._wake_writer()

    def _wake_continued(self) -> None:
        if self._continued is not None and not self._continued.done():
            self._continued.set_result(None)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.body is not None and isinstance(self.body.error, HTTPError):
            what = f"sent a body that can't be read: {self.body.error.detail}"
            self.body.error = self._error(what)
            self._fail(what)

    def body_ended(self) -> None:
        if self.busy:
            self._done()

    def _done(self) -> None:
        """The response is complete: back to the client, unless that would not be clean."""
        self.busy = False
        self.body = None
        clean = self.sent and not self.held and not self.write_paused
        if clean and self.head.keep_alive and not self.transport.is_closing():
            self.resume()
            self._owner.release(self)
        else:
            self._owner.forget(self)
            self.transport.abort()

    # Failures.

    def eof_received(self) -> bool | None:
        self._fail("closed the connection before its response was complete")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail("closed the connection before its response was complete")

    def stop_sending(self) -> bool:
        """Whether the request is no longer wanted: it has been answered, or can't be."""
        return self._response is None or self._response.done() or super().stop_sending()

    def _error(self, what: str) -> DolmenError:
        """The error for a request that got no (whole) response because of `what`.

        A request that never left is the same as one that was not made. One that was written may
        have been acted on, so it is sent again only where that does no harm, and where the
        connection had been kept, which the server may have closed before the request came.
        """
        text = f"{self._owner.name} {what}"
        kept_and_silent = self.number > 1 and not (self._status or self._interim or self.held)
        if self._owner.coalescer.withdraw(self.transport) or (self._reads and kept_and_silent):
            return NotSent(text)
        if self._reads:
            return Unavailable(text)
        return OutcomeUnknown(f"{text}; whether it did what was asked is not known")

    def _fail(self, what: str) -> None:
        """End the request under way with an error, and the connection."""
        self._owner.forget(self)
        if self.busy:
            error = self._error(what)
            self.busy = False
            self._settle(error)
            if self.body is not None:
                self.body.fail(error)
        self.transport.abort()

    # Deadlines.

    def waiting(self) -> Waiting:
        if not self.busy:
            return "idle", self._owner.timeouts.keep_alive, self.number
        if self.collecting or (self.body is not None and self.body.waiter is not None):
            return "body", self.patience, self.arrived
        if self._status or not self.sent:
            return "caller", inf, 0
        return "response", self._owner.timeouts.first_byte, self.number

    def expired(self, what: str) -> None:
        self._fail(
            {
                "idle": "was not needed",
                "write": f"took nothing of the request for {self.patience:g} s",
                "response": f"did not answer within {self._owner.timeouts.first_byte:g} s",
                "body": f"sent nothing of its response for {self.patience:g} s",
            }[what]
        )
