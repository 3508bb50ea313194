"""How long a client may take for each part of a request and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dolmen.http.problems import HTTPError

if TYPE_CHECKING:
    from dolmen.http.protocol import ServerConnection

_WINDOW = 60.0  # seconds over which the least rate of a body is taken


class Watch:
    """What one connection's progress was when last looked at.

    `connection.since` is when its present wait began: for a request, for the
    rest of one, for the next bytes of a body or for the client to take an answer.
    """

    __slots__ = ("_arrived", "_left", "_window")

    def __init__(self) -> None:
        self._arrived = 0
        self._left = -1
        self._window = (0.0, 0)

    def body_begins(self, connection: ServerConnection) -> None:
        """Start the clock of a request's body."""
        connection.since = connection.server.now
        self._window = (connection.since, connection.arrived)

    def check(self, connection: ServerConnection, now: float) -> None:
        """Refuse or cut off a client whose time is over."""
        limits = connection.server.limits
        waited = now - connection.since
        transport = connection.transport
        if connection.lingering:
            if waited > limits.linger:
                transport.abort()
            return
        if connection.stalled or transport.is_closing():
            left = transport.get_write_buffer_size()
            if left != self._left:
                self._left = left
                connection.since = now
            elif waited > limits.body_idle:
                transport.abort()
            return
        self._left = -1
        if connection.idle:
            if connection.held:
                if waited > limits.header_deadline:
                    detail = "The request's headers took too long to arrive."
                    connection.refuse(HTTPError(408, detail))
            elif waited > (limits.keep_alive if connection.served else limits.header_deadline):
                transport.close()
        elif connection.pending or connection.request is None or self._awaits_body(connection):
            if self._too_slow(connection, now):
                connection.cut_body(HTTPError(408, "The request's body took too long to arrive."))
        else:  # the handler is at work
            connection.since = now
            self._window = (now, connection.arrived)

    def _awaits_body(self, connection: ServerConnection) -> bool:
        inflow = connection.inflow
        if inflow is None or inflow.ended:
            return False
        # Its reader may just have been woken by what arrived last.
        return inflow.waiter is not None or connection.arrived != self._arrived

    def _too_slow(self, connection: ServerConnection, now: float) -> bool:
        limits = connection.server.limits
        begun, before = self._window
        arrived = connection.arrived
        if now - begun >= _WINDOW:
            self._window = (now, arrived)
            if arrived - before < limits.body_rate * (now - begun):
                return True
        if arrived != self._arrived:
            self._arrived = arrived
            connection.since = now
            return False
        return now - connection.since > limits.body_idle
