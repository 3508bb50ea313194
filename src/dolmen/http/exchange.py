"""Running one request after the other on a connection: the handler, then its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dolmen.http.encoding import EncodedHeaders, encode_headers
from dolmen.http.messages import Request, Response, Stream
from dolmen.http.problems import HTTPError, problem
from dolmen.http.steps import Ended, Steps
from dolmen.http.wire import Wire

if TYPE_CHECKING:
    from dolmen.http.head import Framing
    from dolmen.http.server import Server

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
"""A coroutine function. It is begun outside any task and in the connection's own context: one
that needs `asyncio.timeout`, a `TaskGroup`, `current_task()` or context variables of its own
awaits `asyncio.sleep(0)` first, after which it runs in a task."""
Observer = Callable[[Request | None, int, int, float], None]
"""Called after each answer: the request (None when it could not be parsed), the status,
the bytes of its body that were sent, and the seconds since the request's head was read."""

log = logging.getLogger("dolmen.http")
_FAILED = "The server failed on this request; its log says why."
_COPY_UP_TO = 64 * 1024  # a body no larger is joined to its head: one copy, one write
_BODILESS = (204, 304)
DISCARD_UP_TO = 64 * 1024  # an unread body no larger is thrown away to keep the connection


async def _close(stream: Stream) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        try:
            await close()
        except Exception:
            log.exception("closing the body of an answer failed")


class Exchange(Wire):
    """Runs a connection's requests, one at a time.

    A handler is stepped right here, and again whenever what it waits for is there
    (`steps`). When the client goes away it is cancelled.
    """

    __slots__ = (
        "_begun", "_framing", "_handler", "_started",
        "expecting", "held", "idle", "request", "served", "server", "since", "steps",
    )  # fmt: skip

    _framing: Framing

    def __init__(self, server: Server) -> None:
        super().__init__(server.loop)
        self.server = server
        self._handler = server.handler
        self.steps: Steps | None = None
        self._started = 0.0
        self.idle = True
        self.held = bytearray()
        self.request: Request | None = None
        self.expecting = False
        self._begun = False
        self.served = False  # whether anything has been answered yet
        self.since = server.now

    def run(self, request: Request, framing: Framing) -> None:
        """Let the handler answer `request`, at once or later."""
        self.idle = False
        self._framing = framing
        self.request = request
        self._started = time.perf_counter()
        try:
            coro = self._handler(request)
            waiting = coro.send(None)
        except StopIteration as stop:
            response = stop.value
            if type(response) is not Response:
                response = self._failed(TypeError(f"a handler gave {response!r}"))
            elif self._answer_soon(response):
                return
        except Exception as error:  # noqa: BLE001 - becomes an answer
            response = self._failed(error)
        except asyncio.CancelledError:
            self.transport.abort()
            return
        else:
            self._begun = False
            self._go_on(coro, waiting, self._handled)
            return
        self._begun = False
        self.answer(response)

    def _answer_soon(self, response: Response) -> bool:
        """The common case in one go; `answer` and what it calls do the same for any.

        The answer goes out with the others of this turn of the loop.
        """
        body, headers, status = response.body, response.headers, response.status
        server, request = self.server, self.request
        if (
            not isinstance(body, (bytes, bytearray, memoryview))
            or len(body) > _COPY_UP_TO
            or type(headers) is not EncodedHeaders
            or not self._framing.plain
            or self.held
            or self._paused
            or self.inflow is not None
            or server.draining
            or status in _BODILESS
            or request is None
            or request.method == "HEAD"
        ):
            return False
        head = server.heads.start(status)
        size = len(body)
        server.outbox.send(
            self.transport,
            b"%b%bContent-Length: %d\r\n\r\n%b" % (head, headers.lines, size, body),  # type: ignore[str-format]
        )
        if server.observe is not None:
            self._observe(request, status, size)
        self.request = None
        self.since = server.now
        self.served = self.idle = True
        return True

    def _observe(self, request: Request | None, status: int, sent: int) -> None:
        try:
            seconds = time.perf_counter() - self._started
            self.server.observe(request, status, sent, seconds)  # type: ignore[misc]
        except Exception:
            log.exception("observing an answer failed")

    def _go_on(self, coro: Coroutine[Any, Any, Any], waiting: object, ended: Ended) -> None:
        self.steps = Steps(coro, waiting, ended)
        self.server.running.add(self)

    def _stop(self) -> None:
        self.steps = None
        self.server.ended(self)

    def _handled(self, response: Any, error: BaseException | None) -> None:
        """The handler that had to wait has come to its end."""
        self._stop()
        if isinstance(error, asyncio.CancelledError):
            self.transport.abort()
            return
        if isinstance(error, Exception):
            response = self._failed(error)
        elif type(response) is not Response:
            response = self._failed(TypeError(f"a handler gave {response!r}"))
        if not self._answer_soon(response):
            self.answer(response)

    def _streamed(self, sent: Any, error: BaseException | None) -> None:
        """The answer whose body is a stream has come to its end, or was given up."""
        self._stop()
        if error is not None:
            self.transport.abort()
        elif self._begun or self.lost:
            self.finish(*sent)
        else:
            self.answer(problem(500, _FAILED))

    def _failed(self, error: Exception) -> Response:
        if isinstance(error, HTTPError):
            return problem(error.status, error.detail, headers=error.headers)
        log.error("handler failed on %r", self.request, exc_info=error)
        return problem(500, _FAILED)

    def answer(self, response: Response) -> None:
        """Send an answer, at once if its body is bytes, else as its stream gives it."""
        body = response.body
        if type(body) is not bytes and not isinstance(body, (bytes, bytearray, memoryview)):
            coro = self._stream(response, body)
            try:
                waiting = coro.send(None)
            except StopIteration as stop:
                self._streamed(stop.value, None)
            else:
                self._go_on(coro, waiting, self._streamed)
            return
        keep = self._keeps()
        size = len(body)
        try:
            head = self._head(response, size, keep=keep)
        except ValueError:
            log.exception("bad headers in the answer to %r", self.request)
            self.answer(problem(500, _FAILED))
            return
        status = response.status
        if self._wants_head() or status in _BODILESS:
            size = 0
            self.transport.write(head)
        elif size <= _COPY_UP_TO:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        self.finish(status, size, keep)

    async def _stream(self, response: Response, stream: Stream) -> tuple[int, int, bool]:
        """Send an answer whose body is a stream; returns what `finish` wants to know."""
        sent = 0
        keep = False
        status = response.status
        try:
            length = stream.length
            http11 = self._framing.http11
            keep = self._keeps() and (length is not None or http11)
            head = self._head(response, length, keep=keep)
            if not self.lost:
                self._begun = True
                self.transport.write(head)
                if not self._wants_head() and status not in _BODILESS:
                    sent = await self.send_stream(stream, chunk=length is None and http11)
        except Exception:
            # An answer that has begun must not end as if it were complete.
            log.exception("the answer to %r failed", self.request)
            if self._begun:
                self.transport.abort()
        finally:
            await _close(stream)
        return status, sent, keep

    def _wants_head(self) -> bool:
        return self.request is not None and self.request.method == "HEAD"

    def _keeps(self) -> bool:
        """Whether the connection can take another request after this one's answer."""
        if not self._framing.keep_alive or self.server.draining:
            return False
        inflow = self.inflow
        if inflow is None or inflow.ended:
            return True
        return (
            not self.expecting
            and inflow.error is None
            and inflow.length is not None
            and inflow.remaining <= DISCARD_UP_TO
        )

    def _head(self, response: Response, length: int | None, *, keep: bool) -> bytes:
        """The answer's head; raises ValueError for headers that can't be sent."""
        self.server.outbox.flush()
        headers = encode_headers(response.headers)
        status = response.status
        start = self.server.heads.start(status)
        framing = self._framing
        if keep and framing.http11 and length is not None and status not in _BODILESS:
            return b"%b%bContent-Length: %d\r\n\r\n" % (start, headers, length)
        extra = b""
        if status not in _BODILESS:
            if length is not None:
                extra = b"Content-Length: %d\r\n" % length
            elif framing.http11:
                extra = b"Transfer-Encoding: chunked\r\n"
        if not keep:
            extra += b"Connection: close\r\n"
        elif not framing.http11:
            extra += b"Connection: keep-alive\r\n"
        return b"%b%b%b\r\n" % (start, headers, extra)

    def finish(self, status: int, sent: int, keep: bool) -> None:
        """Called when an answer has been handed to the socket."""
        if self.server.observe is not None:
            self._observe(self.request, status, sent)
        self.request = None
        self._begun = False  # or the next request would get no 100 Continue
        self.served = True
        self.since = self.server.now
        self.after_answer(keep=keep)

    def after_answer(self, *, keep: bool) -> None:
        """Go on with the next request, or close."""
        raise NotImplementedError

    def send_continue(self) -> None:
        """Ask for the body, if its sender waits to be asked."""
        if self.expecting:
            self.expecting = False
            if not self._begun and not self.transport.is_closing():
                self.server.outbox.flush()
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
