"""Refusals as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from dolmen.errors import DolmenError, TooLarge
from dolmen.http.messages import Response

Pairs = Sequence[tuple[bytes, bytes]]


class HTTPError(DolmenError):
    """Raised by a handler (or this layer) to end a request with a problem of this status.

    `detail` is a sentence the client's user can act on; it is sent to the client.
    """

    def __init__(self, status: int, detail: str, headers: Pairs = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class BodyTooLarge(HTTPError, TooLarge):  # noqa: N818 - as in dolmen.errors
    """A body went beyond the limit its reader gave; 413 when nobody catches it."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The body is larger than the {limit} bytes allowed here.")


def reason(status: int) -> str:
    """The standard phrase of a status code, or "Unknown"."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def problem(status: int, detail: str, *, headers: Pairs = (), **members: object) -> Response:
    """A problem answer: type "about:blank", title, status, detail, and any extra JSON members."""
    told = {
        "type": "about:blank",
        "title": reason(status),
        "status": status,
        "detail": detail,
        **members,
    }
    lines = [(b"Content-Type", b"application/problem+json"), *headers]
    text = json.dumps(told, ensure_ascii=False) + "\n"  # as a person reads it in a terminal
    return Response(status, lines, text.encode("utf-8", "replace"))
