"""HTTP/1.1 on uvloop, server and client; it knows nothing of blobs.

Read `messages` (what a handler sees), `head` (the strict reader), then `connection`, on which both
roles stand, and `body`: `eager`, `server_connection`, `server`; `client_connection`, `client`.
"""

from __future__ import annotations

from dolmen.http.body import NO_BODY, Body
from dolmen.http.client import Client
from dolmen.http.client_connection import ClientResponse
from dolmen.http.encoding import EncodedHeaders
from dolmen.http.limits import Limits, Timeouts
from dolmen.http.messages import (
    BodyTooLarge,
    Handler,
    Headers,
    HTTPError,
    Request,
    Response,
    Stream,
    Streamed,
    problem,
)
from dolmen.http.origins import SitePolicy
from dolmen.http.server import Server, bind, start_server
from dolmen.http.workers import run_workers

__all__ = [
    "NO_BODY",
    "Body",
    "BodyTooLarge",
    "Client",
    "ClientResponse",
    "EncodedHeaders",
    "HTTPError",
    "Handler",
    "Headers",
    "Limits",
    "Request",
    "Response",
    "Server",
    "SitePolicy",
    "Stream",
    "Streamed",
    "Timeouts",
    "bind",
    "problem",
    "run_workers",
    "start_server",
]
