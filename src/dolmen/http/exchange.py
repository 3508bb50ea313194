"""Running one request after the other on a server's connection: the handler, then its response.

Read `connection` first. The handler is called right here; a response that is ready goes out with
the others of this turn of the loop, an awaitable is stepped eagerly. When the client goes away
the handler is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any

from dolmen.http.body import Body
from dolmen.http.coalescer import WriteCoalescer
from dolmen.http.connection import BytesStream, Connection
from dolmen.http.eager import EagerRun, Ended
from dolmen.http.encoding import (
    CLOSE,
    CONTINUE,
    KEEP_ALIVE,
    EncodedHeaders,
    ResponseStarts,
    encode_headers,
    join_head,
    join_response,
    length_line,
)
from dolmen.http.head import Lines
from dolmen.http.limits import Limits
from dolmen.http.messages import Address, Request, Response, Stream, close_stream, problem
from dolmen.http.origins import SitePolicy
from dolmen.http.problems import HTTPError

Handler = Callable[[Request], Response | Awaitable[Response]]
"""Returns a response, or an awaitable when it must wait. A coroutine is begun outside any task and
in the connection's own context: one that needs `asyncio.timeout`, a `TaskGroup`, `current_task()`
or context variables of its own awaits `asyncio.sleep(0)` first, after which it runs in a task."""
Observer = Callable[[Request | None, int, int, float], None]
"""Called after each response: the request (None when it could not be parsed), the status,
the bytes of its body that were sent, and the seconds since the request's head was read."""

log = logging.getLogger("dolmen.http")
_FAILED = "The server failed on this request; its log says why."
_JOINED = 64 * 1024  # a body no larger is joined to its head: one copy, one write
_DISCARDED = 64 * 1024  # an unread body no larger is thrown away to keep the connection
_BODILESS = (204, 304)
_TOGETHER = 64  # responses that may wait for each other; about a millisecond's work


class Shared:
    """What the connections of one server share."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        policy: SitePolicy | None,
        observe: Observer | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.handler = handler
        self.limits = limits
        self.policy = policy
        self.observe = observe
        self.starts = ResponseStarts()
        self.coalescer = WriteCoalescer(self.loop, most=_TOGETHER)
        self.lines: Lines = {}
        self.connections: set[Exchange] = set()
        self.waiting: set[Exchange] = set()
        """Those whose handler or response waits for something."""
        self.draining = False
        self.emptied = asyncio.Event()
        """Set when either became empty."""


class Exchange(Connection):
    """Answers the requests that a role's `take_message` hands to `_answer`."""

    __slots__ = (
        "_begun", "_expecting", "_handler", "_run", "_started",
        "answered", "idle", "lingering", "peer", "request", "shared",
    )  # fmt: skip

    def __init__(self, shared: Shared) -> None:
        limits = shared.limits
        super().__init__(
            shared.loop,
            whole=limits.whole_body,
            largest=limits.body_size,
            patience=limits.body_idle,
        )
        self.shared = shared
        self._handler = shared.handler
        self.request: Request | None = None
        self.peer: Address = None
        self._started = 0.0
        self._run: EagerRun | None = None
        self._begun = False  # a streamed response has begun
        self._expecting = False  # the client waits for 100 Continue
        self.idle = True
        self.lingering = False
        self.answered = 0

    def _answer(self, method: str, target: bytes, body: Body) -> None:
        """Let the handler answer a request, at once or later."""
        self.idle = False
        self.request = request = Request(method, target, self.head.headers, body, self.peer)
        self._started = time.perf_counter()
        try:
            response = self._handler(request)
        except Exception as error:  # noqa: BLE001 - becomes a response
            response = self._failed(error)
        if type(response) is Response:
            self._respond(response)
        elif isinstance(response, CoroutineType):
            self._run_eagerly(response, self._handled)
        else:
            self._run_eagerly(_awaited(response), self._handled)

    def _run_eagerly(self, coro: Coroutine[Any, Any, Any], ended: Ended) -> None:
        try:
            waiting = coro.send(None)
        except StopIteration as stop:
            ended(stop.value, None)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - handed on
            ended(None, error)
        else:
            self.shared.waiting.add(self)
            self._run = EagerRun(coro, waiting, ended)

    def _stopped(self) -> None:
        self._run = None
        waiting = self.shared.waiting
        waiting.discard(self)
        if not waiting:
            self.shared.emptied.set()

    def _handled(self, response: Any, error: BaseException | None) -> None:
        """The handler that was a coroutine has come to its end."""
        if self._run is not None:
            self._stopped()
        if isinstance(error, Exception):
            response = self._failed(error)
        elif error is not None:
            self.transport.abort()
            return
        elif type(response) is not Response:
            response = self._failed(TypeError(f"a handler returned {response!r}"))
        self._respond(response)

    def _failed(self, error: Exception) -> Response:
        if isinstance(error, HTTPError):
            return problem(error.status, error.detail, headers=error.headers)
        log.error("handler failed on %r", self.request, exc_info=error)
        return problem(500, _FAILED)

    def _respond(self, response: Response) -> None:
        """Send a response: at once if its body is small, else as its stream gives it."""
        body = response.body
        if not isinstance(body, (bytes, bytearray, memoryview)):
            self._run_eagerly(self._stream(response, body), self._streamed)
            return
        size = len(body)
        if size > _JOINED:
            self._run_eagerly(self._stream(response, BytesStream(body)), self._streamed)
            return
        shared, headers, status = self.shared, response.headers, response.status
        try:
            lines = headers.lines if type(headers) is EncodedHeaders else encode_headers(headers)
        except ValueError:
            log.exception("bad headers in the response to %r", self.request)
            self._respond(problem(500, _FAILED))
            return
        keep = True
        if self.body is not None or shared.draining or not self.head.plain:
            keep = self._keeps()
            lines += self._connection_line(keep=keep)
        start = shared.starts.of(status)
        if status in _BODILESS:
            size, data = 0, join_head(start, lines, b"")
        elif self.request is not None and self.request.method == "HEAD":
            size, data = 0, join_head(start, lines, length_line(size))
        else:
            data = join_response(start, lines, body)
        if self.held:  # more responses follow at once, which must not pile up
            shared.coalescer.flush()
            self.transport.write(data)
        else:
            shared.coalescer.send(self.transport, data)
        self._finish(status, size, keep=keep)

    async def _stream(self, response: Response, stream: Stream) -> tuple[int, int, bool]:
        """Send a response whose body is a stream; returns status, bytes sent, keep."""
        sent = 0
        keep = False
        status = response.status
        try:
            length = stream.length
            keep = self._keeps() and (length is not None or self.head.http11)
            lines = encode_headers(response.headers) + self._connection_line(keep=keep)
            framed = status not in _BODILESS and (length is not None or self.head.http11)
            self.shared.coalescer.flush()
            if not self.stop_sending():
                self._begun = True
                framing = length_line(length) if framed else b""
                self.transport.write(join_head(self.shared.starts.of(status), lines, framing))
                head_only = self.request is not None and self.request.method == "HEAD"
                if not head_only and status not in _BODILESS:
                    sent = await self.send_stream(stream, chunked=self.head.http11)
        except Exception:
            # A response that has begun must not end as if it were complete.
            log.exception("the response to %r failed", self.request)
            if self._begun:
                self.transport.abort()
        finally:
            try:
                await close_stream(stream)
            except Exception:
                log.exception("closing the body of a response failed")
        return status, sent, keep

    def _streamed(self, result: Any, error: BaseException | None) -> None:
        """The response whose body is a stream has come to its end, or was given up."""
        if self._run is not None:
            self._stopped()
        if error is not None:
            self.transport.abort()
        elif self._begun or self.lost:
            status, sent, keep = result
            self._finish(status, sent, keep=keep)
        else:
            self._respond(problem(500, _FAILED))

    def _keeps(self) -> bool:
        """Whether the connection can take another request after this one's response."""
        if not self.head.keep_alive or self.shared.draining:
            return False
        body = self.body
        if body is None or body.ended:
            return True
        return (
            not self._expecting
            and body.error is None
            and body.length is not None
            and body.remaining <= _DISCARDED
        )

    def _connection_line(self, *, keep: bool) -> bytes:
        if not keep:
            return CLOSE
        return b"" if self.head.http11 else KEEP_ALIVE

    def _finish(self, status: int, sent: int, *, keep: bool) -> None:
        """A response has been handed to the socket: go on, or make an end."""
        shared, body = self.shared, self.body
        self._observe(self.request, status, sent)
        self.request = None
        self._begun = False  # or the next request would get no 100 Continue
        self.answered += 1
        if keep and body is None and not (self.held or self._reading_paused or shared.draining):
            self.idle = True
        elif self.lost:
            return
        elif body is not None and not body.ended:
            body.discard()
            if keep:
                self.resume()
            else:
                self._linger()
        elif keep:
            self._next()
        else:
            self.shared.coalescer.flush()
            self.transport.close()

    def _observe(self, request: Request | None, status: int, sent: int) -> None:
        observe = self.shared.observe
        if observe is not None:
            try:
                observe(request, status, sent, time.perf_counter() - self._started)
            except Exception:
                log.exception("observing a response failed")

    def _next(self) -> None:
        """Take the next request."""
        self.body = None
        self.idle = True
        if self.shared.draining:
            self.shared.coalescer.flush()
            self.transport.close()
            return
        if self._reading_paused:
            self.resume()
        if self.held and not self.write_paused:
            self.cut()

    def send_continue(self) -> None:
        """Ask for the body, if its sender waits to be asked."""
        if self._expecting:
            self._expecting = False
            if not self._begun and not self.transport.is_closing():
                self.shared.coalescer.flush()
                self.transport.write(CONTINUE)

    def hang_up_if_idle(self) -> None:
        """Close unless a request has begun to arrive or is being answered."""
        if self.idle and not self.held and not self.collecting:
            self.shared.coalescer.flush()
            self.transport.close()

    def _linger(self) -> None:
        """Send FIN but read on for a moment: closing on unread bytes would reset the connection
        and could take the response from the client.
        """
        self.lingering = True
        self.held.clear()
        self.shared.coalescer.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume()


async def _awaited(response: object) -> object:
    """Wait for a response that is no coroutine; `TypeError` for what is no awaitable either."""
    return await response  # type: ignore[misc]
