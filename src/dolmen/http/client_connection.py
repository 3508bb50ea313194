"""The client's side of a connection: one request out, one response in.

Read `connection` and `body` first. Whatever is not a well-formed HTTP/1.1 response whose end can be
told from a cut closes the connection with an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.http.body import NO_BODY, Arriving, Body
from dolmen.http.connection import Connection, Waiting, again
from dolmen.http.head import Head, may_begin, read_headers, read_status_line
from dolmen.http.messages import Buffer, Headers, HTTPError, Stream, Streamed

if TYPE_CHECKING:
    from dolmen.http.client import Client

_CONTINUE_PATIENCE = 2.0
_COPY_UP_TO = 64 * 1024
_HEAD_LIMIT = 64 * 1024
_WHOLE_UP_TO = 64 * 1024
_INTERIM_LIMIT = 16


class NotSent(Unavailable):
    """A kept connection was closed before anything came of the request, which may be sent again."""


@dataclass(slots=True, eq=False)
class ClientResponse:
    """A response: `status`, `headers` and `body`.

    A body that has not arrived whole is read from `body`, or given up with
    `close()`, also by leaving `async with`; giving up closes the connection.
    """

    status: int
    headers: Headers
    body: Body = field(repr=False)

    def close(self) -> None:
        """Read no more. Nothing happens when the body has been read to its end."""
        self.body.close()

    async def __aenter__(self) -> ClientResponse:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class ClientConnection(Connection):
    """Sends requests one after the other; `busy` is whether one is under way."""

    __slots__ = (
        "_begun", "_continued", "_head", "_head_only", "_interim", "_kept", "_pool", "_reads",
        "_scanned", "_sent", "_status", "busy",
    )  # fmt: skip

    def __init__(self, pool: Client) -> None:
        super().__init__(pool.loop, pool.timeouts.idle)
        self._pool = pool
        self._head: Head | None = None
        self._status = self._interim = self._begun = self._scanned = 0
        self._head_only = self._reads = self._sent = self._kept = self._continued = False
        self.busy = False

    async def exchange(
        self,
        head: bytes,
        body: Buffer | Stream | None,
        *,
        expect: bool,
        head_only: bool,
        reads: bool,
    ) -> ClientResponse:
        """Send a request; returns the response once its head (a small one: all of it) is here."""
        self._head_only, self._reads = head_only, reads
        self._head, self._status, self._interim, self._scanned = None, 0, 0, 0
        self._begun = self.arrived
        self.busy, self._sent, self._continued = True, False, False
        try:
            if body is None or (
                isinstance(body, bytes) and len(body) <= _COPY_UP_TO and not expect
            ):
                self._pool.coalescer.send(self, head + body if body else head)
                self._sent = True
            else:
                await self._send_slowly(head, body, expect=expect)
            while not self._take_head():
                await self.more("response")
            return await self._receive()
        except BaseException:
            self.give_up()
            raise

    async def _send_slowly(self, head: bytes, body: Buffer | Stream, *, expect: bool) -> None:
        self._pool.coalescer.flush()
        self.transport.write(head)
        if expect:
            # Not by the clock: a timer of uvloop's may be early by up to a millisecond.
            timer = self.loop.call_later(_CONTINUE_PATIENCE, self._go_on)
            try:
                while not (self.stop_sending() or self._continued):
                    await self.more("caller")
            finally:
                timer.cancel()
        if not self.stop_sending():
            if isinstance(body, (bytes, bytearray, memoryview)):
                body = Streamed.of(body)
            await self.send_stream(body, chunked=True)
        self._sent = not self.stop_sending()

    def _go_on(self) -> None:
        """Send the body, whether the server asks for it or not."""
        self._continued = True
        self.wake()

    def stop_sending(self) -> bool:
        """Whether the request is no longer wanted: it has been answered, or can't be."""
        return super().stop_sending() or self._take_head()

    def _take_head(self) -> bool:
        """Take the head of the response, if all of it is here, and what comes before it."""
        while self._head is None:
            if not self.held:
                return False
            end = self.held.find(b"\r\n\r\n", self.at + max(0, self._scanned - 3)) + 4
            if end < 4:
                beginning = self.held[self.at :]
                if not may_begin(beginning, self._scanned) or len(beginning) > _HEAD_LIMIT:
                    raise self._failed("sent something else than an HTTP response")
                self._scanned = len(beginning)
                return False
            self._scanned = 0
            data = self.take(end - self.at)
            cut = data.find(b"\r\n")
            try:
                self._status, http11 = read_status_line(data[:cut])
                if self._status < 200:
                    self._interim += 1
                    self._continued |= self._status == 100
                    if self._status == 101 or self._interim > _INTERIM_LIMIT:
                        raise self._failed("sent interim responses that were not asked for")
                    continue
                head = Head(read_headers(data[cut:], self._pool.lines), http11=http11)
            except HTTPError as error:
                raise self._failed(f"sent a malformed response: {error.detail}") from None
            if self._head_only or self._status in (204, 304):
                head.length, head.chunked = 0, False
            elif head.length is None and not head.chunked:
                what = "sent a response without a length, whose end can't be told from a cut"
                raise self._failed(what)
            self._head = head
        return True

    async def _receive(self) -> ClientResponse:
        head, body = self._head, NO_BODY
        assert head is not None
        if head.chunked or (head.length or 0) > _WHOLE_UP_TO:
            body = Arriving(self, head.length, finished=self._done, given_up=self.give_up)
        else:
            if head.length:
                while self.unread() < head.length:
                    await self.more("body")
                body = Body(self.take(head.length))
            self._done()
        return ClientResponse(self._status, head.headers, body)

    def data_received(self, data: bytes) -> None:
        if not self.busy or self.unsent:
            # What came before the request went out can't be its response.
            self.interrupt(self._failed("sent what nobody asked for"))
            return
        super().data_received(data)
        self._wake_writer()

    def _done(self) -> None:
        """The response is complete: back to the client, unless that would not be clean."""
        self.busy = False
        self._kept = True
        clean = self._sent and not self.held and not self.write_paused
        if clean and self._head and self._head.keep_alive and not self.transport.is_closing():
            self.resume()
            self._pool.release(self)
        else:
            self._pool.forget(self)
            self.transport.abort()

    # Failures.

    def give_up(self) -> None:
        """Close the connection, if a request is under way."""
        if self.busy:
            self.busy = False
            self._pool.forget(self)
            self.transport.abort()

    def eof_received(self) -> bool | None:
        self._closed()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closed()

    def _closed(self) -> None:
        what = "closed the connection before its response was complete"
        self.interrupt(self._failed(what, closed=True))

    def unreadable(self, error: Exception) -> Exception:
        if isinstance(error, HTTPError):
            return self._failed(f"sent a body that can't be read: {error.detail}")
        return error

    def _failed(self, what: str, *, closed: bool = False) -> Exception:
        """End the connection; returns the error for a request that got no (whole) response."""
        self._pool.forget(self)
        self.transport.abort()
        if self.error is None:
            self.error = self._error(f"{self._pool.name} {what}", closed=closed)
        return again(self.error)

    def _error(self, text: str, *, closed: bool) -> DolmenError:
        """A request that never left is the same as one that was not made.

        One that was written may have been acted on, so it is sent again only where that does no
        harm, and where the connection had been kept, which the server may have closed before the
        request came.
        """
        kept_and_silent = closed and self._kept and self.arrived == self._begun
        if self.unsent or (self._reads and kept_and_silent):
            return NotSent(text)
        if self._reads:
            return Unavailable(text)
        return OutcomeUnknown(f"{text}; whether it did what was asked is not known")

    # Deadlines.

    def waiting(self) -> Waiting:
        timeouts = self._pool.timeouts
        if not self.busy:
            return "idle", timeouts.keep_alive, self.arrived
        if self.waits == "body":
            return "body", self.patience, self.arrived
        if self.waits == "response":
            return "response", timeouts.first_byte, self._begun
        return "caller", inf, 0

    def expired(self, what: str) -> None:
        why = {
            "idle": "was not needed",
            "write": f"took nothing of the request for {self.patience:g} s",
            "response": f"did not answer within {self._pool.timeouts.first_byte:g} s",
            "body": f"sent nothing of its response for {self.patience:g} s",
        }[what]
        self.interrupt(self._failed(why))
