"""Refusing a request: the errors that become a response of their status."""

from __future__ import annotations

from collections.abc import Sequence

from dolmen.errors import DolmenError, TooLarge


class HTTPError(DolmenError):
    """Raised by a handler (or this layer) to end a request with a problem of this status.

    `detail` is a sentence the client's user can act on; it is sent to the client.
    """

    def __init__(
        self, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class BodyTooLarge(HTTPError, TooLarge):  # noqa: N818 - as in dolmen.errors
    """A body went beyond the limit its reader gave; 413 when nobody catches it."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The body is larger than the {limit} bytes allowed here.")
